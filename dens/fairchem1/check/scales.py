"""Normalisers and element references of a config, against a sample of its data."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from fairchem.core.modules.normalization.element_references import load_references_from_config
from fairchem.core.modules.normalization.normalizer import load_normalizers_from_config
from torch import Tensor

from dens.data.survey.stats import Moments
from dens.fairchem1.check.data import Split
from dens.runs.check.findings import Report

FACTOR = 3.0  # further off than this is worth a warning
_UNITS = {"energy": "eV", "forces": "eV/Å"}
_TOTALS = "total energies need element_references or lin_ref"
_KEY = "dataset.train.transforms"


def limit_fits(settings: Mapping[str, Any], structures: int) -> dict[str, Any]:
    """The ``transforms`` of a split's settings, in which a fit reads about so many structures."""
    transforms = copy.deepcopy(dict(settings.get("transforms") or {}))
    for name in ("normalizer", "element_references"):
        fit = (transforms.get(name) or {}).get("fit")
        if fit:
            limit = max(1, structures // fit["batch_size"])
            fit["num_batches"] = min(fit.get("num_batches") or limit, limit)
    return transforms


def check_scales(split: Split, seed: int, applies_dens: bool, report: Report) -> None:
    """Compare what outputs are divided by with the sound records of the training data.

    Args:
        applies_dens: whether the trainer is of DeNS, and so heeds ``lin_ref``.
    """
    records = list(split.sound.values())
    if len(records) < 2:
        return
    transforms = limit_fits(split.settings, len(split.sample))
    references, normalizers = {}, {}
    if transforms.get("element_references"):
        references = load_references_from_config(
            transforms["element_references"], dataset=split.dataset, seed=seed
        )
        _check_references(references, records, report)
    name = split.settings.get("format", "lmdb")
    heeding = ["dens.OC22LmdbDataset", "dens_oc22_lmdb", *["oc22_lmdb"] * applies_dens]
    if split.settings.get("lin_ref") and name not in heeding:
        report.warn(
            "energy",
            f"lin_ref is read by format: dens.OC22LmdbDataset; this trainer with format: {name} "
            "ignores it (dataset.train.lin_ref)",
        )
    if transforms.get("normalizer"):
        normalizers = load_normalizers_from_config(
            transforms["normalizer"],
            dataset=split.dataset,
            seed=seed,
            element_references=references,
        )
    energies = np.array([float(_energy(data, references.get("energy"))) for data in records])
    forces = np.concatenate([np.asarray(data.forces[data.fixed == 0]).ravel() for data in records])
    compare("energy", energies, _numbers(normalizers.get("energy")), report)
    compare("forces", forces, _numbers(normalizers.get("forces")), report, normalizers)


def _numbers(normalizer: Any) -> tuple[float, float] | None:
    return None if normalizer is None else (float(normalizer.mean), float(normalizer.rmsd))


def _energy(data: Any, reference: Any) -> Tensor:
    energy = torch.as_tensor(data.energy, dtype=torch.float64).view(1)
    if reference is None:
        return energy
    numbers = torch.as_tensor(data.atomic_numbers).long()
    return energy - reference.element_references[numbers].sum(dtype=torch.float64)


def _check_references(
    references: Mapping[str, Any], records: Sequence[Any], report: Report
) -> None:
    present = {int(z) for data in records for z in data.atomic_numbers}
    for target, reference in references.items():
        values = reference.element_references
        absent = sorted(z for z in present if z >= len(values) or values[z] == 0)
        if absent:
            names = ", ".join(chemical_symbols[z] for z in absent)
            report.warn(
                target,
                f"no reference, or 0, for {names}, which the data have ({_KEY}.element_references)",
            )


def compare(
    target: str,
    values: np.ndarray,
    given: tuple[float, float] | None,
    report: Report,
    like: Mapping[str, Any] | None = None,
) -> None:
    """Report a mean and a standard deviation beside those of numbers.

    Args:
        target: energy or forces, whose spread is taken about zero.
        values: in eV or eV/Å, references subtracted.
        given: mean and stdev of the normaliser; None where there is none.
        like: the normalisers of all targets, to name a scale that is shared on purpose.
    """
    moments, unit = Moments(), _UNITS[target]
    moments.add(values)
    seen = moments.result()
    spread = seen["std" if target == "energy" else "rms"]
    mean, stdev = given or (0.0, 1.0)
    key = f"{_KEY}.normalizer.{target}"
    problems = []
    if spread > 0 and (stdev == 0 or max(stdev / spread, spread / stdev) > FACTOR):
        name = f"stdev {stdev:.4g}" if given else "without a normaliser, the scale 1"
        problem = _scale_problem(target, name, stdev, spread)
        if like and "energy" in like and given and stdev == float(like["energy"].rmsd):
            problem += "; it is that of the energy, as published for OC20 and MD17"
        problems.append(f"{problem} ({key}.stdev)")
    if target == "forces" and mean != 0:
        problems.append(f"mean {mean:.4g} must be 0: it is not equivariant ({key}.mean)")
    elif abs(mean - seen["mean"]) > FACTOR * max(spread, stdev):
        problems.append(
            f"mean {mean:.4g} is {abs(mean - seen['mean']):.4g} {unit} from the sample's "
            f"{seen['mean']:.4g}, which spreads by {spread:.4g}; {_TOTALS} ({key}.mean)"
        )
    for problem in problems:
        report.warn(target, problem)
    if not problems:
        by = f"mean {mean:.4g}, stdev {stdev:.4g}" if given else "no normaliser"
        report.ok(
            target, f"{by}; in the sample mean {seen['mean']:.4g}, spread {spread:.4g} {unit}"
        )


def _scale_problem(target: str, name: str, stdev: float, spread: float) -> str:
    if stdev == 0:
        return f"{name} would divide by 0"
    size, factor = ("large", stdev / spread) if stdev > spread else ("small", spread / stdev)
    hint = f"; {_TOTALS}" if target == "energy" and size == "small" else ""
    sample = f"the sample's {spread:.4g} {_UNITS[target]}"
    return f"{name} is {factor:.3g} times too {size} for {sample}{hint}"
