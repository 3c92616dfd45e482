"""Check DeNS settings against a sample of the data: how much of it can be corrupted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch_geometric.data import Batch, Data

from dens.denoising.config import UNSCHEDULED, DeNSConfig
from dens.denoising.corruption import corrupt_batch
from dens.random import Stream
from dens.runs.check.findings import Findings

FEW = 0.1  # share of the structures
EXCLUDING = (
    "exclude_md",
    "min_num_atoms",
    "max_force_norm",
    "max_mean_force_norm",
    "max_stress_norm",
    "strict_max_ratio",
)
_DRAWS = 8  # for each structure: few atoms may all be missed once


def check_denoising(dens: DeNSConfig, records: Sequence[Any], findings: Findings) -> None:
    """Report the share of the records that can be corrupted, and settings that switch DeNS off."""
    if dens.prob == 0:
        findings.warn("denoising", "prob is 0: DeNS is off, this is a plain run (optim.dens.prob)")
        return
    if dens.denoising_coefficient == 0 and not dens.denoising_coefficient_end:
        findings.warn(
            "denoising",
            "the noise is not learned: its weight is 0 (optim.dens.denoising_coefficient)",
        )
    if not records or not _has_fields(dens, records, findings):
        return
    share, atoms = corruptible(dens, records)
    if share >= FEW:
        findings.ok(
            "denoising",
            f"{share:.0%} of the sampled structures can be corrupted, with probability {dens.prob} "
            f"each, on {atoms:.0%} of their atoms",
        )
        return
    reasons = ", ".join(
        f"{name} = {getattr(dens, name)} ({1 - corruptible(only(dens, name), records)[0]:.0%})"
        for name in EXCLUDING
        if getattr(dens, name)
    )
    kind = "fixed" if dens.corrupt_fixed_atoms == "only" else "free"
    findings.warn(
        "denoising",
        f"only {share:.0%} of the sampled structures can ever be corrupted, so DeNS would hardly "
        f"be trained; excluded by: {reasons or f'nothing, but they have hardly a {kind} atom'} "
        "(optim.dens)",
    )


def _has_fields(dens: DeNSConfig, records: Sequence[Any], findings: Findings) -> bool:
    """Report fields that settings read and records lack."""
    found = True
    for name, key in dens.required_fields.items():
        without = sum(name not in data for data in records)
        if without:
            found = False
            findings.error(
                "denoising",
                f"{without} of {len(records)} structures have no {name}, which {key} reads "
                f"(optim.dens.{key})",
            )
    return found


def only(dens: DeNSConfig, name: str | None) -> DeNSConfig:
    """Copy the settings with a single exclusion, or with none."""
    off: dict[str, Any] = {rule: None for rule in EXCLUDING if rule != name}
    off |= UNSCHEDULED | ({"exclude_md": False} if "exclude_md" in off else {})
    return dens.model_copy(update=off)


def corruptible(dens: DeNSConfig, records: Sequence[Any]) -> tuple[float, float]:
    """Corrupt records a few times with ``prob`` 1, structure by structure as in training.

    Returns:
        The share of structures that are ever corrupted, and of corrupted atoms in those.
    """
    dens = dens.model_copy(update={"prob": 1.0})
    fields = ("pos", "forces", "natoms", "fixed", "md", "stress")
    reduced = [Data(**{name: data[name] for name in fields if name in data}) for data in records]
    batch = Batch.from_data_list(reduced)
    ever = torch.zeros(len(records), dtype=torch.bool)
    atoms = total = 0
    for i in range(_DRAWS):
        corruption = corrupt_batch(batch, dens, Stream.CHECK.generator(0, i))
        chosen = corruption.sigma > 0
        ever |= chosen
        atoms += int(corruption.noise_mask.sum())
        total += int(batch.natoms[chosen].sum())
    return float(ever.float().mean()), atoms / max(total, 1)
