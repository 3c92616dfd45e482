"""Refuse settings that do not fit the trainer, model, losses, outputs or metrics of a config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.modules import evaluator

from dens.denoising.config import DeNSConfig, parse_config
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


def refuse_ignored(config: Mapping[str, Any]) -> None:
    """Refuse settings of dens in a config whose trainer would ignore them.

    Raises:
        ConfigError: names the trainer, and the section or key.
    """
    optim, trainer = config.get("optim") or {}, config.get("trainer", "ocp")
    if "dens" in optim or is_foreign(optim):
        raise ConfigError(
            f"optim holds DeNS settings, which trainer = {trainer!r} would ignore: "
            "use trainer: dens.DeNSTrainer, or remove them (trainer)"
        )
    dataset = config.get("dataset")
    train = dataset.get("train") if isinstance(dataset, Mapping) else None
    if isinstance(train, Mapping) and train.get("on_bad", "error") != "error":
        raise ConfigError(
            f"trainer = {trainer!r} would ignore on_bad: use trainer: dens.DeNSTrainer "
            "(dataset.train.on_bad)"
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


def parse_dens(optim: Mapping[str, Any]) -> DeNSConfig:
    """Read the DeNS settings of an ``optim`` section in the current form.

    Raises:
        ConfigError: there are none, or they are invalid.
    """
    if "dens" not in optim:
        raise ConfigError(
            "optim.dens is missing: the DeNS trainer needs its settings "
            "(for a plain run use trainer: equiformerv2_forces) (optim.dens)"
        )
    return parse_config(optim["dens"])


def check_model_classes(model: Mapping[str, Any], dens: DeNSConfig | None) -> None:
    """Refuse a model without force encoding or noise head, judged by the classes it names.

    Args:
        model: the section of the config.
        dens: the DeNS settings (``prob: 0`` asks nothing of the model); None if invalid.

    Raises:
        ConfigError: names the key of the class, or of the missing head.
    """
    if dens is not None and dens.prob == 0:
        return
    if "backbone" not in model:
        name = model.get("name")
        # hydra without a backbone starts from a checkpoint, whose model is checked when it is built
        model_class = find_class("model", name, "model.name")
        if name != "hydra" and not getattr(model_class, "applies_dens", False):
            raise ConfigError(
                f"model.name = {name!r} would ignore optim.dens: use dens.EquiformerV2DeNS, or "
                "hydra with a backbone and heads of dens (model.name)"
            )
        return
    name = model["backbone"].get("model")
    key = "model.backbone.model"
    if not getattr(find_class("model", name, key), "encodes_forces", False):
        raise ConfigError(
            f"{key} = {name!r} would ignore optim.dens: use dens.EquiformerV2Backbone ({key})"
        )
    heads = model.get("heads") or {}
    classes = [
        find_class("model", head.get("module"), f"model.heads.{head_name}.module")
        for head_name, head in heads.items()
    ]
    if not any(getattr(head, "predicts_noise", False) for head in classes):
        raise ConfigError(
            "model.heads has no noise head, so optim.dens could not be trained: add "
            f"noise: {{module: dens.NoiseHead}} to {', '.join(heads) or 'it'} (model.heads)"
        )


def check_targets(config: Mapping[str, Any]) -> None:
    """Refuse a DeNS config without a force output or force loss, or with a wrong primary metric.

    Raises:
        ConfigError: one line for each mistake, with its section.
    """
    losses = config.get("loss_functions")
    if not losses:
        return  # the older layout, from which fairchem makes outputs and losses itself
    run_all(
        lambda: _check_losses({name: info for term in losses for name, info in term.items()}),
        lambda: _check_outputs(config.get("outputs") or {}),
        lambda: check_primary_metric(config.get("evaluation_metrics") or {}),
    )


def _check_losses(terms: Mapping[str, Any]) -> None:
    if "forces" not in terms:
        raise ConfigError(
            "loss_functions must have a term forces, which the denoising loss extends, got "
            f"{', '.join(terms)} (loss_functions)"
        )
    reduction = terms["forces"].get("reduction", "mean")
    if reduction not in (None, "mean"):
        raise ConfigError(
            "loss_functions.forces.reduction must be mean: optim.dens.reduction says over which "
            f"atoms, got {reduction!r} (loss_functions.forces.reduction)"
        )


def _check_outputs(outputs: Mapping[str, Any]) -> None:
    if "forces" not in outputs:
        raise ConfigError(f"outputs must have forces, got {', '.join(outputs) or 'none'} (outputs)")


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
