"""DeNS settings against a sample of the data: how much of it would be corrupted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch_geometric.data import Batch, Data

from dens.denoising.config import DeNSConfig
from dens.denoising.corruption import corrupt, eligible_structures
from dens.random import Stream
from dens.runs.check.findings import Report

FEW = 0.1  # of the structures
EXCLUDING = (
    "exclude_md",
    "min_num_atoms",
    "max_force_norm",
    "max_mean_force_norm",
    "max_stress_norm",
    "strict_max_ratio",
)
_DRAWS = 8  # of each structure: few atoms may all be missed once


def check_denoising(dens: DeNSConfig, records: Sequence[Any], report: Report) -> None:
    """Report the share of the records that can be corrupted, and settings that switch DeNS off."""
    if dens.prob == 0:
        report.warn("denoising", "prob is 0: DeNS is off, this is a plain run (optim.dens.prob)")
        return
    if dens.denoising_coefficient == 0 and not dens.denoising_coefficient_end:
        report.warn(
            "denoising",
            "the noise is not learned: its weight is 0 (optim.dens.denoising_coefficient)",
        )
    if not records or not _has_fields(dens, records, report):
        return
    share, atoms = corruptible(dens, records)
    if share >= FEW:
        report.ok(
            "denoising",
            f"{share:.0%} of the sampled structures can be corrupted, with probability {dens.prob} "
            f"each, on {atoms:.0%} of their atoms",
        )
        return
    rules = {name: getattr(dens, name) for name in EXCLUDING if getattr(dens, name)}
    alone = {name: 1 - corruptible(only(dens, name), records)[0] for name in rules}
    reasons = ", ".join(f"{name} = {rules[name]} ({alone[name]:.0%})" for name in rules)
    report.warn(
        "denoising",
        f"only {share:.0%} of the sampled structures can ever be corrupted, so DeNS would hardly "
        f"be trained; excluded by: {reasons or 'nothing, but they have hardly a free atom'} "
        "(optim.dens)",
    )


def _has_fields(dens: DeNSConfig, records: Sequence[Any], report: Report) -> bool:
    needs = {"md": dens.exclude_md is True, "stress": dens.max_stress_norm is not None}
    setting = {"md": "exclude_md", "stress": "max_stress_norm"}
    found = True
    for name, needed in needs.items():
        without = sum(name not in data for data in records)
        if needed and without:
            found = False
            report.error(
                "denoising",
                f"{without} of {len(records)} structures have no {name}, which {setting[name]} "
                f"reads (optim.dens.{setting[name]})",
            )
    return found


def only(dens: DeNSConfig, name: str | None) -> DeNSConfig:
    """The settings with no exclusion, or with a single one."""
    off = {rule: None for rule in EXCLUDING if rule != name}
    off |= {"early_epochs": None} | ({"exclude_md": False} if "exclude_md" in off else {})
    return dens.model_copy(update=off)


def corruptible(dens: DeNSConfig, records: Sequence[Any]) -> tuple[float, float]:
    """The share of structures that can be corrupted, and of atoms that are, in those.

    Structures are corrupted one by one as training does, with ``prob`` 1, a few times each.
    """
    dens = dens.model_copy(update={"prob": 1.0})
    fields = ("pos", "forces", "natoms", "fixed", "md", "stress")
    reduced = [Data(**{name: data[name] for name in fields if name in data}) for data in records]
    batch = Batch.from_data_list(reduced)
    eligible = eligible_structures(
        dens,
        forces=batch.forces,
        batch=batch.batch,
        natoms=batch.natoms,
        md=batch.md if "md" in batch else None,
        stress=batch.stress if "stress" in batch else None,
    )
    ever = torch.zeros(len(records), dtype=torch.bool)
    atoms = total = 0
    for i in range(_DRAWS):
        corruption = corrupt(
            batch.pos,
            batch.batch,
            batch.natoms,
            dens,
            Stream.CHECK.generator(0, i),
            fixed=batch.fixed,
            eligible=eligible,
        )
        chosen = corruption.sigma > 0
        ever |= chosen
        atoms += int(corruption.noise_mask.sum())
        total += int(batch.natoms[chosen].sum())
    return float(ever.float().mean()), atoms / max(total, 1)
