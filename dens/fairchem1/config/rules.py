"""Refuse DeNS settings that do not fit the trainer, model, losses or outputs of a config."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fairchem.core.common.registry import registry

from dens.denoising.config import DeNSConfig, parse_config
from dens.fairchem1.config.translate import is_foreign
from dens.settings import ConfigError


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
    names = ["loss", *metric_names(evaluation.get("metrics") or {})]
    primary = evaluation.get("primary_metric")
    if primary is not None and primary not in names:
        raise ConfigError(
            f"evaluation_metrics.primary_metric must be one of {', '.join(names)}, got "
            f"{primary!r} (evaluation_metrics.primary_metric)"
        )
