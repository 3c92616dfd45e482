"""Refuse, before anything is built or submitted, what the config alone shows to be wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports

from dens.data.checked import parse_on_bad
from dens.denoising.config import DeNSConfig, parse_config
from dens.fairchem1.config.translate import is_foreign, translate_model, translate_optim
from dens.runs.monitor.settings import parse_monitor
from dens.settings import ConfigError


def check_config(config: Mapping[str, Any]) -> None:
    """Check a whole training config, as read from YAML.

    Raises:
        ConfigError: one line for each mistake: invalid DeNS settings; DeNS settings with a trainer
            or a model that would ignore them; a DeNS trainer without DeNS settings, force loss or
            force output; a wrong ``on_bad``; a primary metric that is not computed.
    """
    setup_imports(config)
    optim, trainer = config.get("optim") or {}, config.get("trainer", "ocp")
    splits = config.get("dataset")
    splits = splits if isinstance(splits, Mapping) else {}  # an older layout, without such keys
    splits = {name: split for name, split in splits.items() if isinstance(split, Mapping)}
    if not getattr(_find_class("trainer", trainer, "trainer"), "applies_dens", False):
        if "dens" in optim or is_foreign(optim):
            raise ConfigError(
                f"optim holds DeNS settings, which trainer = {trainer!r} would ignore: "
                "use trainer: dens.DeNSTrainer, or remove them (trainer)"
            )
        if (splits.get("train") or {}).get("on_bad", "error") != "error":
            raise ConfigError(
                f"trainer = {trainer!r} would ignore on_bad: use trainer: dens.DeNSTrainer "
                "(dataset.train.on_bad)"
            )
        return
    _run_all(
        lambda: parse_on_bad(splits),
        lambda: parse_dens(optim),
        lambda: parse_monitor(optim),
        lambda: _check_model(config.get("model") or {}, optim),
        lambda: check_targets(config),
    )


def _run_all(*checks: Callable[[], object]) -> None:
    """Run all checks, whatever the ones before say, and raise one error for all of them."""
    problems = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


def _check_model(model: Mapping[str, Any], optim: Mapping[str, Any]) -> None:
    try:
        dens = parse_dens(optim)
    except ConfigError:
        dens = None  # said already
    check_model_classes(translate_model(model) if is_foreign(optim) else model, dens)


def _find_class(kind: str, name: Any, key: str) -> type:
    """The registered ``trainer`` or ``model`` class of a name, which the config has at ``key``."""
    if not isinstance(name, str):
        raise ConfigError(f"{key} must be the name of a {kind} class, got {name!r} ({key})")
    try:
        return getattr(registry, f"get_{kind}_class")(name)
    except RuntimeError as error:
        raise ConfigError(f"{key} = {name!r} is not known: {error} ({key})") from None


def parse_dens(optim: Mapping[str, Any]) -> DeNSConfig:
    """The DeNS settings of an ``optim`` section, in either form.

    Raises:
        ConfigError: there are none, or they are invalid.
    """
    optim = translate_optim(optim)
    if "dens" not in optim:
        raise ConfigError(
            "optim.dens is missing: the DeNS trainer needs its settings "
            "(for a plain run use trainer: equiformerv2_forces) (optim.dens)"
        )
    return parse_config(optim["dens"])


def check_model_classes(model: Mapping[str, Any], dens: DeNSConfig | None) -> None:
    """Refuse a model without force encoding or noise head, by the classes its config names.

    Args:
        model: the section of the config.
        dens: the settings, with which ``prob: 0`` needs nothing of the model; None if unknown.

    Raises:
        ConfigError: names the key of the class, or of the missing head.
    """
    if dens is not None and dens.prob == 0:
        return
    if "backbone" not in model:
        name = model.get("name")
        # hydra without a backbone starts from a checkpoint, whose model is checked when it is built
        model_class = _find_class("model", name, "model.name")
        if name != "hydra" and not getattr(model_class, "applies_dens", False):
            raise ConfigError(
                f"model.name = {name!r} would ignore optim.dens: use dens.EquiformerV2DeNS, or "
                "hydra with a backbone and heads of dens (model.name)"
            )
        return
    name = model["backbone"].get("model")
    key = "model.backbone.model"
    if not getattr(_find_class("model", name, key), "encodes_forces", False):
        raise ConfigError(
            f"{key} = {name!r} would ignore optim.dens: use dens.EquiformerV2Backbone ({key})"
        )
    heads = model.get("heads") or {}
    classes = [
        _find_class("model", head.get("module"), f"model.heads.{head_name}.module")
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
        ConfigError: one line for each of them, which names the section.
    """
    losses = config.get("loss_functions")
    if not losses:
        return  # the older layout, from which fairchem makes outputs and losses itself
    _run_all(
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
    """The names under which fairchem's evaluator reports ``evaluation_metrics.metrics``."""
    return [
        fn if target == "misc" or target in fn else f"{target}_{fn}"
        for target, functions in metrics.items()
        for fn in functions
    ]


def check_primary_metric(evaluation: Mapping[str, Any]) -> None:
    """Refuse a primary metric that is not computed: fairchem would stop at the first validation.

    Raises:
        ConfigError: names the metric and those there are.
    """
    names = ["loss", *metric_names(evaluation.get("metrics") or {})]
    primary = evaluation.get("primary_metric")
    if primary is not None and primary not in names:
        raise ConfigError(
            f"evaluation_metrics.primary_metric must be one of {', '.join(names)}, got "
            f"{primary!r} (evaluation_metrics.primary_metric)"
        )
