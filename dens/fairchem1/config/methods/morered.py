"""Checks of a config for MoreRed: a backbone without forces, heads, losses of their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from dens.fairchem1.backbones.families import EQUIFORMER_V2, family_of_section
from dens.fairchem1.config.rules import check_primary_metric, find_class, head_classes, run_all
from dens.noise_levels import NoiseLevels
from dens.relax.config import MoreRedConfig, RelaxSettings, parse_morered
from dens.relax.objective import MoreRedObjective
from dens.settings import ConfigError, parse_settings, setting

_MADE = MoreRedObjective.makes
# settings of fairchem's relaxations: what takes their place
_OF_FORCES = {
    "relaxation_steps": "counts calls, max_calls in task.relax_opt",
    "relaxation_fmax": "knows no forces, see stop_level in task.relax_opt",
    "relax_cell": "keeps the cell",
    "relax_volume": "keeps the cell",
}


def parse_settings_of(optim: Mapping[str, Any]) -> MoreRedConfig:
    """Read the MoreRed settings of an ``optim`` section.

    Raises:
        ConfigError: they are missing or invalid.
    """
    if "morered" not in optim:
        raise ConfigError(
            "optim.morered is missing: the MoreRed trainer needs its settings, {} for the defaults "
            "(optim.morered)"
        )
    return parse_morered(optim["morered"] or {})


def check_model(config: Mapping[str, Any]) -> None:
    """Refuse a model without a head of MoreRed, or one that encodes forces.

    Raises:
        ConfigError: names the key of the class or setting.
    """
    model = config.get("model") or {}
    if "backbone" not in model:
        raise ConfigError(
            "model must be hydra with a backbone and a head dens.MoreRedHead or dens.TimeHead, got "
            "no backbone (model.backbone)"
        )
    problems = []
    backbone = model["backbone"]
    cls = find_class("model", backbone.get("model"), "model.backbone.model")
    if family_of_section(model) not in (EQUIFORMER_V2, None):
        problems.append(
            "model.backbone.model must be dens.EquiformerV2Backbone, which the heads of MoreRed "
            f"read, got {backbone['model']!r} (model.backbone.model)"
        )
    if getattr(cls, "encodes_forces", False) and backbone.get("force_encoding", True):
        problems.append(
            "force_encoding must be false: MoreRed knows no forces (model.backbone.force_encoding)"
        )
    heads = head_classes(model)
    if not any(hasattr(head, "outputs_with") for head in heads.values()):
        problems.append(
            "model.heads has no head of MoreRed: add morered: {module: dens.MoreRedHead} to "
            f"{', '.join(heads) or 'it'} (model.heads)"
        )
    if problems:
        raise ConfigError("\n".join(problems))


def check_targets(config: Mapping[str, Any]) -> None:
    """Refuse losses and outputs that the heads do not predict, or that are not of each atom.

    Raises:
        ConfigError: one line for each mistake, with its section.
    """
    run_all(
        lambda: _check_losses(config),
        lambda: check_primary_metric(config.get("evaluation_metrics") or {}),
    )


class RelaxOptions(RelaxSettings):
    """Settings ``task.relax_opt`` of ``--mode run-relaxations`` with a MoreRed trainer."""

    traj_dir: str | None = setting(
        "a folder, or null",
        "where the way of each structure is written; structures that are there already are read "
        "instead of relaxed",
        default=None,
    )


def parse_relaxation(task: Mapping[str, Any]) -> RelaxOptions:
    """Read ``relax_opt`` of a ``task`` section; without any the defaults hold.

    Raises:
        ConfigError: one line for each mistake.
    """
    return parse_settings(RelaxOptions, task.get("relax_opt") or {}, "task.relax_opt")


def check_relaxation(config: Mapping[str, Any]) -> None:
    """Refuse settings of relaxation that are wrong, or that are those of an optimizer on forces.

    Raises:
        ConfigError: one line for each mistake.
    """
    task = config.get("task") or {}
    problems = [
        f"{name} would be ignored: relaxation by denoising {why} (task.{name})"
        for name, why in _OF_FORCES.items()
        if task.get(name)
    ]
    settings = parse_relaxation(task)
    with suppress(ConfigError):  # another check reports wrong settings of training
        levels = parse_settings_of(config.get("optim") or {}).levels
        problems += _outside_of(levels, settings)
    if problems:
        raise ConfigError("\n".join(problems))


def _outside_of(levels: NoiseLevels, settings: RelaxOptions) -> Iterator[str]:
    try:
        settings.lowest_level(levels)
    except ConfigError as error:
        yield f"{error} (task.relax_opt.stop_level)"


def _check_losses(config: Mapping[str, Any]) -> None:
    losses = config.get("loss_functions") or []
    names = [name for term in losses if isinstance(term, Mapping) for name in term]
    outputs = config.get("outputs") or {}
    predicted = predicted_by(config.get("model") or {})
    problems = [
        f"{name} is no target of MoreRed, which has {', '.join(_MADE)} (loss_functions.{name})"
        for name in names
        if name not in _MADE
    ]
    if not names:
        problems.append(
            f"loss_functions must have {' and '.join(predicted or _MADE)}, got none "
            "(loss_functions)"
        )
    for name in outputs:
        if name not in predicted and predicted:
            problems.append(
                f"no head predicts {name}, they predict {', '.join(predicted)} (outputs.{name})"
            )
        elif (outputs[name] or {}).get("level", "system") != "atom":
            problems.append(f"level must be atom, for {name} (outputs.{name}.level)")
    if problems:
        raise ConfigError("\n".join(problems))


def predicted_by(model: Mapping[str, Any]) -> list[str]:
    """List the outputs of the heads of MoreRed that a ``model`` section names."""
    found = []
    for head in (model.get("heads") or {}).values():
        with suppress(ConfigError):  # another check reports an unknown class
            cls = find_class("model", head.get("module"), "model.heads")
            if hasattr(cls, "outputs_with"):
                found += cls.outputs_with(head)
    return found
