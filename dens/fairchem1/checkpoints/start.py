r"""Start a trainer from a checkpoint: resume it, or take its weights, whatever its layout.

A checkpoint of dens with its optimizer is resumed. From any other the weights are taken, with the
normalisers and element references that belong to them; optimizer, schedule, step and moving average
start afresh. Where it has no DeNS, the force encoding starts at zero effect, and the noise head as
a copy of the force head (or fresh), scaled to predict noise:

.. math:: f_i \approx -K \epsilon_i \quad\Rightarrow\quad
   \frac{\epsilon_i}{s_N} \approx -\frac{s_F}{K s_N} \frac{f_i}{s_F}

since forces pull a displaced atom back, with a stiffness K of some 15 eV/Å² in solids. As it is,
the copy points the wrong way, and its errors are far above those of predicting no noise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch import Tensor, nn

from dens.fairchem1.checkpoints.inspect import describe
from dens.fairchem1.checkpoints.layouts import (
    ENCODING,
    Checkpoint,
    interpret,
    is_resumable,
)
from dens.safe.checkpoints import safe_load
from dens.settings import ConfigError

_NOISE_HEADS = ("force_head", "fresh")
_STIFFNESS = 15.0  # eV/Å²
_LAST_LAYER = (".proj.weight", ".proj.bias")  # of a force head: linear


@dataclass(frozen=True)
class Pretrained:
    """``model.pretrained``: a path, or a mapping with ``path`` and ``noise_head``.

    Attributes:
        path: checkpoint to start from; None leaves that to ``--checkpoint``.
        noise_head: ``force_head`` (start as its copy, scaled) or ``fresh``, where the checkpoint
            has none.
    """

    path: str | None = None
    noise_head: str = "force_head"


def take_pretrained(model: Mapping[str, Any]) -> tuple[dict[str, Any], Pretrained]:
    """Split ``model.pretrained`` off a ``model`` section.

    Raises:
        ConfigError: it is of another form, or the file is missing.
    """
    model = dict(model)
    given = model.pop("pretrained", None)
    settings = given if isinstance(given, Mapping) else {"path": given}
    unknown = set(settings) - {"path", "noise_head"}
    if unknown or not isinstance(settings.get("path"), str | None):
        raise ConfigError(
            "model.pretrained must be a path, or a mapping with path and noise_head, got "
            f"{given!r} (model.pretrained)"
        )
    found = Pretrained(**settings)
    if found.noise_head not in _NOISE_HEADS:
        raise ConfigError(
            f"noise_head must be {' or '.join(_NOISE_HEADS)}, got {found.noise_head!r} "
            "(model.pretrained.noise_head)"
        )
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
    """Load a checkpoint of any layout into a DeNS trainer.

    Args:
        trainer: holds the model, and the settings of ``model.pretrained``.
        parent: the ``load_checkpoint`` that the trainer inherits.
        path: the file.
        content: what is in it, where that is known.
        inference_only: leave the state of training alone.

    Raises:
        ConfigError: the file cannot be read or does not fit the model; names what and how.
    """
    try:
        content = safe_load(path) if content is None else content
        names = trainer._unwrapped_model.state_dict()
        resume = is_resumable(content, str(path), names) and not inference_only
        source = interpret(content, str(path), raw=resume)
        state, report = adapt_weights(
            source, trainer._unwrapped_model, path, _noise_head(trainer, source)
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if resume:
        parent(path, content, inference_only)
        trainer.resumed(content)
        return
    if distutils.is_master():
        logging.info(report.table(source, path))
    plain = {
        "state_dict": state,
        "normalizers": source.normalizers,
        "elementrefs": source.elementrefs,
        "amp": None,
    }
    had_average = trainer.ema is not None
    scaler, trainer.scaler = trainer.scaler, None  # afresh, like the optimizer
    parent(path, plain, inference_only=True)
    trainer.scaler = scaler
    if had_average:
        parameters = trainer.model.parameters()
        trainer.ema = ExponentialMovingAverage(parameters, trainer.ema_decay)


def _noise_head(trainer: Any, source: Checkpoint) -> float | None:
    """What a force head is multiplied with to predict noise; None for a fresh noise head."""
    if trainer.pretrained.noise_head == "fresh":
        return None
    forces = source.normalizers.get("forces", {})
    scale = float(forces.get("rmsd", forces.get("std", 1.0)))
    return -scale / (_STIFFNESS * trainer.dens.noise_scale)


@dataclass
class Report:
    """What became of each tensor of a model and of a checkpoint."""

    taken: list[str] = field(default_factory=list)
    initialised: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    def table(self, source: Checkpoint, path: str) -> str:
        """A few lines of text."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.initialised.items():
            by_reason.setdefault(reason, []).append(name)
        rows = [
            f"Weights from {path} (layout: {source.layout})",
            f"  taken        {len(self.taken):5d} tensors: {_parts(self.taken)}",
        ]
        for reason, names in by_reason.items():
            rows.append(f"  initialised  {len(names):5d} tensors: {_parts(names)}, {reason}")
        rows.append(f"  ignored      {len(self.ignored):5d} tensors: {_parts(self.ignored)}")
        return "\n".join(rows)


def _parts(names: list[str]) -> str:
    found = dict.fromkeys(
        ENCODING.rstrip(".")
        if name.startswith(ENCODING)
        else ".".join(name.split(".")[: 1 + name.startswith("output_heads")])
        for name in names
    )
    return ", ".join(found) or "-"


def adapt_weights(
    source: Checkpoint, model: nn.Module, path: str, factor: float | None
) -> tuple[dict[str, Tensor], Report]:
    """The state dict for ``model`` from a checkpoint, and what became of each tensor.

    ``factor`` makes a noise head of a force head; None leaves it as it is in ``model``.

    Raises:
        ValueError: sizes differ, or weights that both must have are missing on one side.
    """
    target = dict(model.state_dict())
    target_heads = _target_heads(model)
    _compare_sizes(describe(source.weights), describe(target), path)
    weights = _rename_heads(source.weights, source.heads, target_heads)
    state, report = {}, Report()
    for name, value in target.items():
        found, reason = _initial(name, value, weights, target_heads, factor)
        if found is None:
            raise ValueError(f"{path} has no {name}, which the model has")
        if found.shape != value.shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(found.shape)} in the checkpoint and "
                f"{tuple(value.shape)} in the model"
            )
        state[name] = found
        if reason:
            report.initialised[name] = reason
        else:
            report.taken.append(name)
    report.ignored = [name for name in weights if name not in target]
    unused = [name for name in report.ignored if _is_essential(name)]
    if unused:
        raise ValueError(f"{path} has {unused[0]}, which the model has not")
    return state, report


def _target_heads(model: nn.Module) -> dict[str, str]:
    found = {}
    for name, head in model.output_heads.items():
        if getattr(head, "predicts_noise", False):
            found[name] = "noise"
        elif hasattr(head, "energy_block"):
            found[name] = "energy"
        else:
            found[name] = "forces" if hasattr(head, "force_block") else "other"
    return found


def _rename_heads(weights, source: dict[str, str], target: dict[str, str]) -> dict[str, Tensor]:
    """Give the heads of a checkpoint the names of the model's, where their roles say which."""
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


def _initial(name, value, weights, heads, factor) -> tuple[Tensor | None, str]:
    """A tensor of the model, and, where it is not from the checkpoint, how it was made."""
    if name in weights:
        return weights[name], ""
    if name.startswith(ENCODING):
        return torch.zeros_like(value), "zero effect"
    if not name.startswith("output_heads."):
        return (value, "as new") if not _is_essential(name) else (None, "")
    head = name.split(".")[1]
    if heads[head] == "noise" and factor is not None:
        forces = next((other for other in heads if heads[other] == "forces"), "no force head")
        copied = weights.get(name.replace(f".{head}.", f".{forces}.", 1))
        if copied is not None and name.endswith(_LAST_LAYER):
            copied = factor * copied
        return copied, f"from {forces} times {factor:.2g}"
    return (value, "as new") if heads[head] in ("noise", "other") else (None, "")


def _is_essential(name: str) -> bool:
    """Whether a weight must be on both sides."""
    optional = (ENCODING, "backbone.energy_lin_ref")
    return name.startswith("backbone.") and not name.startswith(optional)


def _compare_sizes(source: Mapping[str, int], target: Mapping[str, int], path: str) -> None:
    for key, value in source.items():
        if value != target.get(key, value):
            raise ValueError(
                f"{path} does not fit the model: {key} is {value} in the checkpoint and "
                f"{target[key]} in the config (model.backbone.{_KEYS.get(key, key)})"
            )


_KEYS = {"lmax": "lmax_list", "mmax": "mmax_list"}
