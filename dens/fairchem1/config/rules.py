"""Refuse settings that do not fit the trainer, model, losses, outputs or metrics of a config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.models.equiformer_v2.heads.rank2 import Rank2SymmetricTensorHead
from fairchem.core.modules import evaluator

from dens.fairchem1.backbones.attached import check_shares_graphs
from dens.fairchem1.config.translate import is_foreign
from dens.settings import ConfigError, closest, unknown_value


def run_all(*checks: Callable[[], object]) -> None:
    """Run all checks, even after one has failed, and raise one error with the lines of all.

    Raises:
        ConfigError: each line once.
    """
    problems = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems += str(error).splitlines()
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


_METHODS = {"dens": ("DeNS", "DeNSTrainer"), "morered": ("MoreRed", "MoreRedTrainer")}


def refuse_ignored(config: Mapping[str, Any], section: str | None) -> None:
    """Refuse settings of dens in a config whose trainer would ignore them.

    Args:
        section: the key of the trainer's own method in ``optim``; None for a trainer without.

    Raises:
        ConfigError: names the trainer, and the section or key.
    """
    optim, trainer = config.get("optim") or {}, config.get("trainer", "ocp")
    given = [key for key in _METHODS if key in optim or (key == "dens" and is_foreign(optim))]
    for method, name in (_METHODS[key] for key in given if key != section):
        raise ConfigError(
            f"optim holds {method} settings, which trainer = {trainer!r} would ignore: "
            f"use trainer: dens.{name}, or remove them (trainer)"
        )
    if section is not None:
        return
    dataset = config.get("dataset")
    train = dataset.get("train") if isinstance(dataset, Mapping) else None
    if isinstance(train, Mapping) and train.get("on_bad", "error") != "error":
        raise ConfigError(
            f"trainer = {trainer!r} would ignore on_bad: use trainer: dens.DeNSTrainer "
            "(dataset.train.on_bad)"
        )


def head_classes(model: Mapping[str, Any]) -> dict[str, type]:
    """Look up the classes of the heads of a ``model`` section, by the names of the heads.

    Raises:
        ConfigError: there is no such class.
    """
    heads = model.get("heads") or {}
    return {
        name: find_class("model", head.get("module"), f"model.heads.{name}.module")
        for name, head in heads.items()
    }


def check_shared_graphs(config: Mapping[str, Any]) -> None:
    """Refuse ranks that share graphs (``gp_gpus``) where the model cannot be split over them.

    Raises:
        ConfigError: names the backbone or the head.
    """
    model = config.get("model") or {}
    if (config.get("gp_gpus") or 1) == 1 or "backbone" not in model:
        return
    check_shares_graphs(find_class("model", model["backbone"].get("model"), "model.backbone.model"))
    for name, head in head_classes(model).items():
        # it looks for atoms of other ranks among those of its own
        if head.forward is Rank2SymmetricTensorHead.forward:
            raise ConfigError(
                "--gp-gpus needs dens.StressHead: fairchem-core 1.10 does not split the graphs of "
                f"{model['heads'][name]['module']} over ranks (model.heads.{name}.module)"
            )


def find_class(kind: str, name: Any, key: str) -> type:
    """Look up the ``trainer`` or ``model`` class that the config names at ``key``.

    Raises:
        ConfigError: there is no such class.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{key} must be the name of a {kind} class, got {name!r} ({key})")
    try:
        return getattr(registry, f"get_{kind}_class")(name)
    except RuntimeError as error:
        raise ConfigError(f"{key} = {name!r} is not known: {error} ({key})") from None


def metric_names(metrics: Mapping[str, Iterable[str]]) -> list[str]:
    """List the names under which fairchem's evaluator reports ``evaluation_metrics.metrics``."""
    return [
        fn if target == "misc" or target in fn else f"{target}_{fn}"
        for target, functions in metrics.items()
        for fn in functions
    ]


def check_primary_metric(evaluation: Mapping[str, Any]) -> None:
    """Refuse a primary metric that is not computed: fairchem would stop at the first validation.

    Raises:
        ConfigError: names the metric and those that are computed.
    """
    metrics = evaluation.get("metrics") or {}
    if not isinstance(metrics, Mapping):
        return  # check_names refuses it
    names = ["loss", *metric_names(metrics)]
    primary = evaluation.get("primary_metric")
    if primary is not None and primary not in names:
        raise ConfigError(
            f"evaluation_metrics.primary_metric must be one of {', '.join(names)}, got "
            f"{primary!r} (evaluation_metrics.primary_metric)"
        )


# ---- names that any trainer looks up -------------------------------------------------------------


def find_registered(kind: str, name: Any) -> type | None:
    """Look up a class of fairchem's registry, or at a dotted path; None if there is none.

    Args:
        kind: ``model``, ``dataset``, ``loss`` or ``logger``.
        name: the name, which may be anything.
    """
    try:
        return getattr(registry, f"get_{kind}_class")(name)
    except (AttributeError, RuntimeError, TypeError):
        return None


def check_names(config: Mapping[str, Any]) -> None:
    """Refuse losses, metrics, loggers and data formats that fairchem does not know.

    Args:
        config: of sound types. Sections that are missing are not looked into.

    Raises:
        ConfigError: one line for each mistake, with the names that are known.
    """
    problems = [*_wrong_losses(config), *_wrong_metrics(config), *_wrong_logger(config)]
    dataset = config.get("dataset")
    for split, settings in dataset.items() if isinstance(dataset, Mapping) else ():
        name = settings.get("format", "lmdb") if isinstance(settings, Mapping) else "lmdb"
        if find_registered("dataset", name) is None:
            problems.append(unknown_value(name, f"dataset.{split}.format", _registered("dataset")))
    if problems:
        raise ConfigError("\n".join(problems))


def _registered(kind: str) -> list[str]:
    return sorted(registry.mapping[f"{kind}_name_mapping"])


def _outputs(config: Mapping[str, Any]) -> list[str]:
    """List the outputs of a config, and the parts that they are composed of."""
    outputs = config.get("outputs") or {}
    parts = [(output or {}).get("decomposition") or {} for output in outputs.values()]
    return [*outputs, *(name for names in parts for name in names)]


def _no_output(target: str, where: str, outputs: list[str]) -> str:
    close = closest(target, outputs)
    hint = f": did you mean {close}? ({where})" if close else " (outputs)"
    return f"outputs must have {target}, got {', '.join(outputs) or 'none'}{hint}"


def _wrong_losses(config: Mapping[str, Any]) -> Iterator[str]:
    outputs = _outputs(config)
    for term in config.get("loss_functions") or []:
        if not isinstance(term, Mapping):
            yield f"loss_functions must hold mappings of a target, got {term!r} (loss_functions)"
            continue
        for target, settings in term.items():
            settings, where = settings or {}, f"loss_functions.{target}"
            if target not in outputs:
                yield _no_output(target, where, outputs)
            for key in ("fn", "coefficient"):
                if key not in settings:
                    yield f"{key} is missing ({where}.{key})"
            name = settings.get("fn", "mae")
            if find_registered("loss", name) is None:
                yield unknown_value(name, f"{where}.fn", _registered("loss"))
            scalar = {"energy": ("l2mae", "l2norm"), "forces": ("per_atom_mae",)}
            if name in scalar.get(target, ()):
                kind = "vectors" if target == "energy" else "energies"
                yield f"fn = {name!r} is a loss of {kind}, got the target {target} ({where}.fn)"


def _metric_functions() -> dict[str, Callable]:
    """Find fairchem's functions of metrics, as its evaluator does: by their name."""
    found = {k: v for k, v in vars(evaluator).items() if inspect.isfunction(v)}
    return {k: v for k, v in found.items() if "prediction" in inspect.signature(v).parameters}


def _wrong_metrics(config: Mapping[str, Any]) -> Iterator[str]:
    outputs, functions = _outputs(config), _metric_functions()
    metrics, where = (config.get("evaluation_metrics") or {}).get("metrics"), "evaluation_metrics"
    if metrics is not None and not isinstance(metrics, Mapping):
        yield f"metrics must be a mapping of outputs, got {metrics!r} ({where}.metrics)"
        return
    for target, names in (metrics or {}).items():
        key = f"{where}.metrics.{target}"
        if target not in (*outputs, "misc") and outputs:
            yield _no_output(target, key, outputs)
        if not isinstance(names, list):
            yield f"{target} must be a list of metrics, got {names!r} ({key})"
            continue
        # those that are wrapped take an output, the others know which ones they are about
        known = [
            n for n, f in functions.items() if target != "misc" or not hasattr(f, "__wrapped__")
        ]
        yield from (unknown_value(name, key, sorted(known)) for name in names if name not in known)


def _wrong_logger(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("is_debug") or "logger" not in config:
        return
    logger = config["logger"]
    known = [*_registered("logger"), "wandb_singleton"]
    name = logger.get("name") if isinstance(logger, Mapping) else logger
    where = "logger.name" if isinstance(logger, Mapping) else "logger"
    if name != "wandb_singleton" and find_registered("logger", name) is None:
        yield unknown_value(name, where, known)
    if name == "wandb_singleton":
        settings = logger if isinstance(logger, Mapping) else {}
        yield from (
            f"{key} is missing, which wandb_singleton needs (logger.{key})"
            for key in ("project", "entity")
            if key not in settings
        )
