"""Check normalisers and element references against a sample of the training data."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from fairchem.core.modules.normalization.element_references import load_references_from_config
from fairchem.core.modules.normalization.normalizer import load_normalizers_from_config
from torch import Tensor

from dens.fairchem1.check.data import Split
from dens.runs.check.findings import Findings

FACTOR = 3.0  # a scale that is wrong by more than this factor is worth a warning
_UNITS = {
    "energy": "eV",
    "forces": "eV/Å",
    "stress_isotropic": "eV/Å^3",
    "stress_anisotropic": "eV/Å^3",
}
# their mean would be a direction, which does not turn with the structure
_DIRECTED = ("forces", "stress_anisotropic")
_TOTALS = "total energies need element_references or lin_ref"
_KEY = "dataset.train.transforms"


def limit_fits(settings: Mapping[str, Any], structures: int) -> dict[str, Any]:
    """Copy the ``transforms`` of a split, so that a fit reads about this number of structures."""
    transforms = copy.deepcopy(dict(settings.get("transforms") or {}))
    for name in ("normalizer", "element_references"):
        fit = (transforms.get(name) or {}).get("fit")
        if fit:
            limit = max(1, structures // fit["batch_size"])
            fit["num_batches"] = min(fit.get("num_batches") or limit, limit)
    return transforms


def check_scales(
    split: Split, targets: Collection[str], seed: int, applies_dens: bool, findings: Findings
) -> None:
    """Compare normalisers and references with the sound records of the training data.

    Args:
        split: the training data.
        targets: what has a loss; the parts of the stress are looked at if they are among them.
        seed: the seed of the run, for normalisers that are fitted.
        applies_dens: whether the trainer is of DeNS, and so reads ``lin_ref``.
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
        _check_references(references, records, findings)
    name = split.settings.get("format", "lmdb")
    reading = ["dens.OC22LmdbDataset", "dens_oc22_lmdb", *["oc22_lmdb"] * applies_dens]
    if split.settings.get("lin_ref") and name not in reading:
        findings.warn(
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
    forces = torch.cat([data.forces[data.fixed == 0].ravel() for data in records]).double().numpy()
    given = {name: normalizers[name] for name in _UNITS if name in normalizers}
    scales = {name: (float(n.mean), float(n.rmsd)) for name, n in given.items()}
    _compare("energy", energies, scales, findings)
    _compare("forces", forces, scales, findings)
    for name in ("stress_isotropic", "stress_anisotropic"):
        parts = [data[name].ravel() for data in records if name in data]
        if name in targets and len(parts) == len(records):
            _compare(name, torch.cat(parts).double().numpy(), scales, findings)


def _energy(data: Any, reference: Any) -> Tensor:
    """Return the energy of a record less its element references, in eV."""
    energy = torch.as_tensor(data.energy, dtype=torch.float64).view(1)
    if reference is None:
        return energy
    numbers = torch.as_tensor(data.atomic_numbers).long()
    return energy - reference.element_references[numbers].sum(dtype=torch.float64)


def _check_references(
    references: Mapping[str, Any], records: Sequence[Any], findings: Findings
) -> None:
    present = {int(z) for data in records for z in data.atomic_numbers}
    for target, reference in references.items():
        values = reference.element_references
        absent = sorted(z for z in present if z >= len(values) or values[z] == 0)
        if absent:
            names = ", ".join(chemical_symbols[z] for z in absent)
            findings.warn(
                target,
                f"no reference, or 0, for {names}, which the data have ({_KEY}.element_references)",
            )


def _compare(
    target: str,
    values: np.ndarray,
    scales: Mapping[str, tuple[float, float]],
    findings: Findings,
) -> None:
    """Compare a normaliser with the mean and the spread of values in the units of their target.

    ``scales`` holds mean and stdev of all normalisers: one stdev is often shared on purpose.
    """
    unit, key, given = _UNITS[target], f"{_KEY}.normalizer.{target}", scales.get(target)
    (mean, stdev), seen = given or (0.0, 1.0), float(values.mean())
    # of what has a direction, around 0
    spread = np.sqrt(np.square(values).mean()) if target in _DIRECTED else values.std()
    problems = []
    if spread > 0 and (stdev == 0 or max(stdev / spread, spread / stdev) > FACTOR):
        name = f"stdev {stdev:.4g}" if given else "without a normaliser, the scale 1"
        problem = _scale_problem(target, name, stdev, spread)
        if target == "forces" and given and "energy" in scales and stdev == scales["energy"][1]:
            problem += "; it is that of the energy, as published for OC20 and MD17"
        problems.append(f"{problem} ({key}.stdev)")
    if target in _DIRECTED and mean != 0:
        problems.append(f"mean {mean:.4g} must be 0: it is not equivariant ({key}.mean)")
    elif abs(mean - seen) > FACTOR * max(spread, stdev):
        hint = f"; {_TOTALS}" if target == "energy" else ""
        problems.append(
            f"mean {mean:.4g} is {abs(mean - seen):.4g} {unit} from the sample's {seen:.4g}, which "
            f"spreads by {spread:.4g}{hint} ({key}.mean)"
        )
    for problem in problems:
        findings.warn(target, problem)
    if not problems:
        by = f"mean {mean:.4g}, stdev {stdev:.4g}" if given else "no normaliser"
        findings.ok(target, f"{by}; in the sample mean {seen:.4g}, spread {spread:.4g} {unit}")


def _scale_problem(target: str, name: str, stdev: float, spread: float) -> str:
    if stdev == 0:
        return f"{name} would divide by 0"
    size, factor = ("large", stdev / spread) if stdev > spread else ("small", spread / stdev)
    hint = f"; {_TOTALS}" if target == "energy" and size == "small" else ""
    sample = f"the sample's {spread:.4g} {_UNITS[target]}"
    return f"{name} is {factor:.3g} times too {size} for {sample}{hint}"
