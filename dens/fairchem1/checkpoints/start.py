r"""Start a trainer from a checkpoint of any layout: resume it, or take its weights.

A checkpoint of dens with its optimizer is resumed. From any other the weights are taken, with the
normalisers and element references that belong to them; optimizer, schedule, step and moving average
start afresh. Where it has no DeNS, the force encoding starts at zero effect, and the noise head as
a copy of the force head (or fresh), scaled to predict noise:

.. math:: f_i \approx -K \epsilon_i \quad\Rightarrow\quad
   \frac{\epsilon_i}{s_N} \approx -\frac{s_F}{K s_N} \frac{f_i}{s_F}

since forces pull a displaced atom back, with a stiffness K of some 15 eV/Å² in solids. Unscaled,
the copy points the wrong way, and its errors are far above those of predicting no noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from fairchem.core.common import distutils
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from dens.denoising.objective import DeNSObjective
from dens.fairchem1.backbones.families import Family, family_of_weights
from dens.fairchem1.backbones.sizes import EMBEDDING
from dens.fairchem1.checkpoints.layouts import ENCODING, Checkpoint, interpret, is_resumable, roles
from dens.fairchem1.checkpoints.state import upgrade
from dens.fairchem1.checkpoints.trained_settings import (
    adopt,
    no_config_notice,
    settings_notice,
    settle_scales,
)
from dens.runs.terminal.output import show
from dens.safe.checkpoints import safe_load
from dens.settings import ConfigError, parse_settings, setting

_STIFFNESS = 15.0  # eV/Å²
_BY_ELEMENT = ("_embedding.weight", "energy_lin_ref")


class Pretrained(BaseModel):
    """Settings ``model.pretrained``: a path, or a mapping of these keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    path: str | None = setting(
        "a path", "checkpoint to start from; null leaves that to --checkpoint", default=None
    )
    noise_head: Literal["force_head", "fresh"] = setting(
        "'force_head' or 'fresh'",
        "start of a noise head that the checkpoint lacks: scaled copy of the force head, or new",
        default="force_head",
    )


def take_pretrained(model: Mapping[str, Any]) -> tuple[dict[str, Any], Pretrained]:
    """Split ``model.pretrained`` off a ``model`` section and check it.

    Raises:
        ConfigError: it is of another form, or the file is missing.
    """
    model = dict(model)
    given = model.pop("pretrained", None)
    settings = given if isinstance(given, Mapping) else {"path": given}
    found = parse_settings(Pretrained, settings, "model.pretrained")
    if found.path is not None and not Path(found.path).is_file():
        raise ConfigError(f"checkpoint {found.path} does not exist (model.pretrained)")
    return model, found


def load_from(
    trainer: Any,
    parent: Callable[..., None],
    path: str,
    content: dict[str, Any] | None,
    inference_only: bool,
) -> None:
    """Load a checkpoint of any layout into a trainer of dens.

    Args:
        trainer: holds the model, and the settings of ``model.pretrained``.
        parent: the ``load_checkpoint`` that the trainer inherits.
        path: the file; ``content`` is its content if it has been read already.
        inference_only: do not restore the state of training.

    Raises:
        ConfigError: the file cannot be read or does not fit the model; names the difference.
    """
    try:
        content = upgrade(safe_load(path) if content is None else content, str(path))
        source = interpret(content, str(path), raw=True)
        _adopt_settings(trainer, source, str(path), inference_only)
        model = trainer._unwrapped_model
        resume = is_resumable(content, str(path), model.state_dict()) and not inference_only
        grown = grown_elements(source.weights, model.state_dict())
        if grown:
            trainer.notify_checkpoint(_growth_notice(path, source, grown, resume))
            resume = False
        if not resume:
            source = interpret(content, str(path))
        state, table = adapt_weights(source, model, path, _noise_factor(trainer, source))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if trainer.element_record is not None:
        trainer.element_record.start(content)
    if not inference_only:
        for notice in settle_scales(trainer, source, path, resume):
            trainer.notify_checkpoint(notice)
    if resume:
        parent(path, content, inference_only)
        trainer.resumed(content)
        return
    if distutils.is_master():
        show(table)
    scales = {"normalizers": source.normalizers, "elementrefs": source.elementrefs}
    had_average = trainer.ema is not None
    scaler, trainer.scaler = trainer.scaler, None  # starts afresh, like the optimizer
    parent(path, {"state_dict": state, **scales, "amp": None}, inference_only=True)
    trainer.scaler = scaler
    if had_average:
        trainer.ema = ExponentialMovingAverage(trainer.model.parameters(), trainer.ema_decay)


def _adopt_settings(trainer: Any, source: Checkpoint, path: str, inference_only: bool) -> None:
    """Rebuild the model with the settings of a checkpoint, if it was built with others."""
    section, replaced = adopt(trainer.config["model"], source, path)
    if replaced:
        trainer.notify_checkpoint(settings_notice(path, replaced))
        trainer.rebuild_model(section)
    elif source.model is None and not inference_only:
        trainer.notify_checkpoint(no_config_notice(source, path))


def _growth_notice(path: str, source: Checkpoint, grown: list[str], resumable: bool) -> str:
    old = len(source.weights[EMBEDDING])
    anew = "; optimizer, schedule and step start anew" if resumable else ""
    return (
        f"{path} knows atomic numbers below {old}, fewer than the config (model.backbone."
        f"max_num_elements): the rows of the others are new in {len(grown)} embeddings{anew}"
    )


def grown_elements(weights: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """List the tensors with a row for each element of which the model has more rows.

    Args:
        weights: of a checkpoint, by their names in dens.
        target: the model's state dict.
    """
    both = {EMBEDDING} & weights.keys() & target.keys()
    if not both or len(weights[EMBEDDING]) >= len(target[EMBEDDING]):
        return []
    rows = len(weights[EMBEDDING]), len(target[EMBEDDING])
    return [
        name
        for name, value in weights.items()
        if name.endswith(_BY_ELEMENT)
        and name in target
        and (len(value), len(target[name])) == rows
        and value.shape[1:] == target[name].shape[1:]
    ]


def _noise_factor(trainer: Any, source: Checkpoint) -> float | None:
    """Return the factor from forces to the noise of DeNS, or None for a fresh noise head."""
    objective = trainer.objective
    if trainer.pretrained.noise_head == "fresh" or not isinstance(objective, DeNSObjective):
        return None
    return -float(source.scale("forces")) / (_STIFFNESS * objective.config.noise_scale)


def adapt_weights(
    source: Checkpoint, model: nn.Module, path: str, factor: float | None
) -> tuple[dict[str, Tensor], str]:
    """Make the state dict of a model from the weights of a checkpoint.

    Args:
        source: the checkpoint.
        model: the model to start.
        path: the name of the file, for errors.
        factor: what to multiply a force head with to get a noise head; None leaves the model's.

    Returns:
        The state dict, and a table of the tensors that were taken, initialised and ignored.

    Raises:
        ValueError: sizes differ, or weights that both must have are missing on one side.
    """
    target = dict(model.state_dict())
    family = _same_family(source.weights, target, path)
    marked = {n for n, h in model.output_heads.items() if getattr(h, "predicts_noise", False)}
    heads = roles(target) | dict.fromkeys(marked, "noise")
    weights = dict(source.weights)
    for name in grown_elements(weights, target):
        new = target[name][len(weights[name]) :]
        weights[name] = torch.cat([weights[name], new.to(weights[name])])
    _compare_sizes(weights, target, family, path)
    weights = _rename_heads(weights, source.heads, heads)
    state, initialised = {}, {}
    for name, value in target.items():
        found = weights.get(name)
        if found is None:
            found, initialised[name] = _initial(name, value, weights, heads, factor, family)
        if found is None:
            raise ValueError(f"{path} has no {name}, which the model has")
        if found.shape != value.shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(found.shape)} in the checkpoint and "
                f"{tuple(value.shape)} in the model"
            )
        state[name] = found
    ignored = [name for name in weights if name not in target]
    if unused := [name for name in ignored if _is_essential(name)]:
        raise ValueError(f"{path} has {unused[0]}, which the model has not")
    title = f"Weights from {path} (layout: {source.layout})"
    return state, "\n".join([title, *_table_rows(state, initialised, ignored)])


def _table_rows(state: Mapping, initialised: dict[str, str], ignored: list[str]) -> list[str]:
    groups = [("taken", [name for name in state if name not in initialised], "")]
    for reason in dict.fromkeys(initialised.values()):
        names = [name for name, why in initialised.items() if why == reason]
        groups.append(("initialised", names, f", {reason}"))
    groups.append(("ignored", ignored, ""))
    return [f"  {what:<12} {len(n):5d} tensors: {_parts(n)}{why}" for what, n, why in groups]


def _parts(names: list[str]) -> str:
    """List the parts of a model that tensors belong to."""
    found = dict.fromkeys(
        ENCODING.rstrip(".")
        if name.startswith(ENCODING)
        else ".".join(name.split(".")[: 1 + name.startswith("output_heads")])
        for name in names
    )
    return ", ".join(found) or "-"


def _rename_heads(weights, source: dict[str, str], target: dict[str, str]) -> dict[str, Tensor]:
    """Give a checkpoint's heads the names of the model's heads with the same, unique role."""
    names = {}
    for head, role in source.items():
        same = [name for name in target if target[name] == role]
        alone = list(source.values()).count(role) == 1
        keeps = target.get(head) == role or role == "other" or len(same) != 1 or not alone
        names[f"output_heads.{head}."] = f"output_heads.{head if keeps else same[0]}."
    renamed = {}
    for key, value in weights.items():
        head = next((old for old in names if key.startswith(old)), "")
        renamed[names.get(head, "") + key.removeprefix(head)] = value
    return renamed


def _same_family(source: Mapping, target: Mapping, path: str) -> Family:
    """Return the family of the model, which must be that of the checkpoint."""
    theirs, ours = family_of_weights(source), family_of_weights(target)
    if theirs is not ours:
        raise ValueError(
            f"{path} does not fit the model: it holds an {theirs.title}, and the config has an "
            f"{ours.title} (model.backbone.model)"
        )
    return ours


def _initial(name, value, weights, heads, factor, family: Family) -> tuple[Tensor | None, str]:
    """Initialise a tensor that a checkpoint lacks, in words too; None if it must not lack it."""
    if name.startswith(ENCODING):
        return torch.zeros_like(value), "zero effect"
    if not name.startswith("output_heads."):
        return None if _is_essential(name) else value, "as new"
    head = name.split(".")[1]
    forces = next((other for other in heads if heads[other] == "forces"), None)
    if heads[head] == "noise" and factor is not None and forces is not None:
        copied = weights.get(name.replace(f".{head}.", f".{forces}.", 1))
        if copied is not None and name.endswith(family.last_layer):
            copied = factor * copied
        return copied, f"from {forces} times {factor:.2g}"
    return value if heads[head] in ("noise", "other") else None, "as new"


def _is_essential(name: str) -> bool:
    """Tell whether a weight must be in the checkpoint and in the model."""
    optional = (ENCODING, "backbone.energy_lin_ref")
    return name.startswith("backbone.") and not name.startswith(optional)


def _compare_sizes(weights: Mapping, model: Mapping, family: Family, path: str) -> None:
    target = family.describe(model)
    for key, value in family.describe(weights).items():
        if value != target.get(key, value):
            raise ValueError(
                f"{path} does not fit the model: {key} is {value} in the checkpoint and "
                f"{target[key]} in the config (model.backbone.{family.keys.get(key, key)})"
            )
