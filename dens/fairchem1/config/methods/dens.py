"""Checks of a config for DeNS: its settings, a model with its parts, a loss of forces."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dens.denoising.config import DeNSConfig, parse_config
from dens.fairchem1.backbones.families import (
    EQUIFORMER_V2,
    FAMILIES,
    Family,
    family_of_section,
)
from dens.fairchem1.config.rules import check_primary_metric, find_class, head_classes, run_all
from dens.settings import ConfigError


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


def check_model_classes(config: Mapping[str, Any]) -> None:
    """Refuse a model without force encoding or noise head, judged by the classes it names.

    Without DeNS (``prob: 0``) nothing is asked of the model.

    Raises:
        ConfigError: names the key of the class, or of the missing head.
    """
    model = config.get("model") or {}
    family = family_of_section(model) or EQUIFORMER_V2
    _check_heads_fit(model, family)
    with suppress(ConfigError):
        if parse_dens(config.get("optim") or {}).prob == 0:
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
            f"{key} = {name!r} would ignore optim.dens: use {family.backbone} ({key})"
        )
    heads = head_classes(model)
    if not any(getattr(head, "predicts_noise", False) for head in heads.values()):
        raise ConfigError(
            "model.heads has no noise head, so optim.dens could not be trained: add "
            f"noise: {{module: {family.noise_head}}} to {', '.join(heads) or 'it'} (model.heads)"
        )


def _check_heads_fit(model: Mapping[str, Any], family: Family) -> None:
    heads = model.get("heads")
    for name, head in heads.items() if isinstance(heads, Mapping) else ():
        module = head.get("module") if isinstance(head, Mapping) else None
        other = next((f for f in FAMILIES if f is not family and module in f.head_names), None)
        if other is not None:
            raise ConfigError(
                f"model.heads.{name}.module = {module!r} is a head of {other.title}, but the "
                f"backbone is {family.title}: use one of {', '.join(family.heads.values())} "
                f"(model.heads.{name}.module)"
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
