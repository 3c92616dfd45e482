"""Read checkpoints of every layout, with and without DeNS, as models of dens.

Each weight gets the name that it has in dens. Five layouts are known; ``module.`` in front of the
names, which DataParallel and the like add once or more often, makes no difference.

====================== =====================================================================
EquiformerV2           ``backbone.*``, ``output_heads.<name>.energy_block``, ``.force_block``
EquiformerV2, flat     ``energy_block``, ``force_block``, everything else at top level
DeNS of fairchem 1.10  ``backbone.force_embedding``, heads with ``scalar_block``,
                       ``vector_block`` and ``denoising_pos_block``
DeNS, flat             flat, with ``force_embedding`` and ``denoising_pos_block``
dens                   ``backbone.force_encoding``, ``output_heads.noise``
====================== =====================================================================

The names are those of EquiformerV2. eSCN has all five layouts too, eSEN the three that are not flat
(with ``linear`` and ``denoising_linear`` in its heads); plain ones are called after the backbone:
``eSCN, flat``. A checkpoint with a version of dens is of the last layout; others are recognised by
their names.

In both foreign DeNS layouts the force embedding, and the embedding of sigma, have a bias on l = 0
that reaches every atom, clean or not. It acts like a part of the atom embedding, so it is added to
the embedding of every element. This reproduces those models exactly, with one parameter less.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dens.fairchem1.backbones.families import TITLES, family_of_weights
from dens.fairchem1.backbones.sizes import EMBEDDING
from dens.fairchem1.checkpoints.model_sections import NOISE_HEADS, model_section, trainable_names
from dens.fairchem1.checkpoints.state import upgrade
from dens.safe.checkpoints import safe_load

DENS = "dens"
FAIRCHEM_DENS = "DeNS of fairchem 1.10"
FLAT_DENS = "DeNS, flat"
PLAIN = "EquiformerV2"
FLAT = "EquiformerV2, flat"
_FLAT = ", flat"

ENCODING = "backbone.force_encoding."

_UNFLATTENED = [
    (r"^energy_block\.", "output_heads.energy.energy_block."),
    (r"^force_block\.", "output_heads.forces.force_block."),
    (r"^denoising_pos_block\.", "output_heads.noise.force_block."),
    (r"^(?!output_heads\.)", "backbone."),
]
_RENAMED = [
    (r"^backbone\.force_embedding\.", ENCODING),
    (r"^backbone\.noise_schedule_sigma_embedding\.", f"{ENCODING}sigma_"),
    (r"^(output_heads\.[^.]+)\.scalar_block\.", r"\1.energy_block."),
    (r"^(output_heads\.[^.]+)\.vector_block\.", r"\1.force_block."),
    (r"^output_heads\.[^.]+\.denoising_pos_block\.", "output_heads.noise.force_block."),
    (r"^output_heads\.[^.]+\.denoising_linear\.", "output_heads.noise.linear."),
]
_ROLES = {"energy_block": "energy", "force_block": "forces", "linear": "forces"}
_TARGETS = {"target": "energy", "grad_target": "forces"}  # older names of normalisers
_BIASES = (f"{ENCODING}bias", f"{ENCODING}sigma_bias")


@dataclass(frozen=True)
class Checkpoint:
    """Model in a checkpoint, under the names of dens.

    Attributes:
        layout: one of the five.
        weights: tensors by their names in dens.
        model: the ``model`` section to build it with, or None where the file holds no config.
        normalizers: state dicts by target.
        elementrefs: state dicts by target.
        content: the whole file, upgraded to the current version of dens.
    """

    layout: str
    weights: dict[str, Tensor]
    model: dict[str, Any] | None
    normalizers: dict[str, Mapping[str, Tensor]]
    elementrefs: dict[str, Mapping[str, Tensor]]
    content: dict[str, Any]

    @property
    def heads(self) -> dict[str, str]:
        """The role (energy, forces, noise or other) of each head, by its name."""
        found = roles(self.weights)
        for name, head in (self.model or {"heads": {}})["heads"].items():
            if head["module"] in NOISE_HEADS and name in found:
                found[name] = "noise"
        return found

    def check_potential(self, where: str) -> None:
        """Refuse a model that predicts neither energies nor forces.

        Raises:
            ValueError: names the file and its heads.
        """
        if not {"energy", "forces"} & set(self.heads.values()):
            raise ValueError(
                f"{where} predicts neither energies nor forces, its heads are "
                f"{', '.join(self.heads)}: a model of MoreRed is for `dens relax`"
            )

    def scale(self, target: str) -> Any:
        """Return the standard deviation by which a target is divided; 1 without a normaliser."""
        normalizer = self.normalizers.get(target, {})
        return normalizer.get("rmsd", normalizer.get("std", 1.0))


def read(path: str | Path, raw: bool = False) -> Checkpoint:
    """Read a checkpoint of any layout; runs no code from the file.

    Args:
        path: the file.
        raw: take the weights as trained; by default their moving average, where there is one.

    Raises:
        ValueError: the file is missing, damaged or no checkpoint; its layout or its version of dens
            is unknown.
    """
    return interpret(upgrade(safe_load(path), str(path)), str(path), raw)


def interpret(content: dict[str, Any], where: str, raw: bool = False) -> Checkpoint:
    """Make a :class:`Checkpoint` from the content of a file.

    Args:
        content: of the current version of dens, or of any foreign layout.
        where: the name of the file, for errors.
        raw: see :func:`read`.

    Raises:
        ValueError: an unknown layout, or a moving average that does not fit the weights.
    """
    found = _state_dict(content, where)
    layout = DENS if "dens" in content else recognise(found, where)
    weights = {name: found[key] for key in found if (name := canonical(key, layout))}
    model = model_section(
        content.get("config"),
        where,
        foreign=layout == FAIRCHEM_DENS,
        noise="noise" in roles(weights),
    )
    if model and layout in (FAIRCHEM_DENS, FLAT_DENS):
        sigma = f"{ENCODING}sigma_weight" in weights
        model["backbone"]["sigma_encoding"] = "structure" if sigma else False
    average = content.get("ema")
    if average and not raw:
        if model is None:
            raise ValueError(f"{where} has a moving average and no config to assign it by")
        weights.update(_averages(weights, average["shadow_params"], model, where))
    return Checkpoint(
        layout,
        _fold_biases(weights),
        model,
        {_TARGETS.get(k, k): v for k, v in (content.get("normalizers") or {}).items()},
        dict(content.get("elementrefs") or {}),
        content,
    )


def is_resumable(content: dict[str, Any], where: str, names: Iterable[str]) -> bool:
    """Tell whether training can resume from the content of a file.

    It can where dens wrote it with its optimizer. A plain model, which the trainer uses with
    ``prob: 0``, is resumed as a plain model only: any other starts from its weights.

    Args:
        content: of the current version of dens, or of any foreign layout.
        where: the name of the file, for errors.
        names: the names in the model's state dict.

    Raises:
        ValueError: an unknown layout.
    """
    if "optimizer" not in content:
        return False
    state = _state_dict(content, where)
    return recognise(state, where) == DENS or ("dens" in content and set(state) == set(names))


def _state_dict(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    if not isinstance(content.get("state_dict"), Mapping) or not content["state_dict"]:
        raise ValueError(
            f"{where} holds no model: expected state_dict, got {', '.join(map(str, content))}"
        )
    return {re.sub(r"^(module\.)+", "", k): v for k, v in content["state_dict"].items()}


def recognise(names: Iterable[str], where: str) -> str:
    """Find the layout of a state dict by its names (without ``module.``).

    Raises:
        ValueError: none of the five fits.
    """
    names = list(names)
    starts = {name.split(".")[0] for name in names}
    if {"backbone", "output_heads"} <= starts:
        if any(name.startswith("backbone.force_embedding.") for name in names):
            return FAIRCHEM_DENS
        ours = (ENCODING, "output_heads.noise.")
        if any(name.startswith(ours) for name in names):
            return DENS
        return family_of_weights(names).title
    if {"sphere_embedding", "energy_block"} <= starts and starts & {"blocks", "layer_blocks"}:
        family = family_of_weights(f"backbone.{name}" for name in names)
        return FLAT_DENS if "force_embedding" in starts else f"{family.title}{_FLAT}"
    raise ValueError(
        f"{where} is no checkpoint of a known layout and model ({TITLES}): expected backbone.* and "
        f"output_heads.*, or sphere_embedding, energy_block and blocks, got {', '.join(starts)}"
    )


def canonical(key: str, layout: str) -> str | None:
    """Return the name in dens of a tensor, or None for a table that dens does not keep."""
    for pattern, name in (_UNFLATTENED if layout.endswith(_FLAT) else []) + _RENAMED:
        key = re.sub(pattern, name, key)
    return None if key == f"{ENCODING}expand_index" else key


def roles(names: Iterable[str]) -> dict[str, str]:
    """Find the role (energy, forces, noise or other) of each head by the names of its tensors."""
    found: dict[str, str] = {}
    for name in names:
        if match := re.match(r"output_heads\.([^.]+)\.([^.]+)", name):
            head, block = match.groups()
            role = _ROLES.get(block, "other")
            found.setdefault(head, "noise" if head == "noise" else role)
    return found


def _averages(weights, shadow: list[Tensor], model, where: str) -> dict[str, Tensor]:
    """Name the moving averages: the file lists them in the order of the trained weights."""
    trained = trainable_names(model).union(_BIASES)
    names = [name for name in weights if name in trained]
    if [weights[name].shape for name in names] != [value.shape for value in shadow]:
        raise ValueError(
            f"{where}: the moving average (ema) has {len(shadow)} tensors that do not fit the "
            f"{len(names)} trained weights; --raw takes the weights without it"
        )
    return dict(zip(names, shadow, strict=True))


def _fold_biases(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the biases of foreign encodings to the embedding of every element."""
    weights = dict(weights)
    for name in _BIASES:
        if name in weights:
            weights[EMBEDDING] = weights[EMBEDDING] + weights.pop(name)
    if (sigma := weights.get(f"{ENCODING}sigma_weight")) is not None:
        weights[f"{ENCODING}sigma_weight"] = sigma.reshape(-1)  # (channels, 1) in a Linear layer
    return weights
