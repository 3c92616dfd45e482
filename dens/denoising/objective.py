"""DeNS as an objective: corrupt non-equilibrium structures, learn their forces and the noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dens.denoising.clean_phases import at, describe_phases, is_scheduled, probability
from dens.denoising.config import DeNSConfig, corrupt_all
from dens.denoising.corruption import (
    Draws,
    attach,
    corrupt_batch,
    denoising_fields,
    sample_draws_by_structure,
    set_fields,
)
from dens.denoising.loss import denoising_targets
from dens.denoising.metrics import denoising_metric_names, denoising_metrics
from dens.fields import DENOISING_FIELDS
from dens.metrics import Ratio
from dens.objective import Objective, Prediction, Probe, Progress, Target


@dataclass(frozen=True)
class DeNSObjective(Objective):
    """Denoising non-equilibrium structures (DeNS, arXiv:2403.09549), an auxiliary objective.

    Forces count on free atoms outside C, the noise on C, the energy for every structure and any
    other target for clean structures.

    Args:
        config: the settings ``optim.dens``.
        hide_forces: whether the forces of the original are hidden from the model.
    """

    config: DeNSConfig
    hide_forces: bool = False

    section = "dens"
    fields = DENOISING_FIELDS

    def describe(self) -> str:
        dens = self.config
        levels = dict.fromkeys((dens.sigmas[0], dens.sigmas[-1]))
        sigmas = " to ".join(f"{sigma:g}" for sigma in levels)
        ratio = "all" if dens.corrupt_ratio is None else f"{dens.corrupt_ratio:.0%}"
        return f"DeNS with prob {dens.prob:g}, sigma {sigmas} Å on {ratio} of the atoms"

    def describe_phases(self, progress: Progress) -> str:
        if self.config.prob == 0 or not is_scheduled(self.config):
            return ""
        return describe_phases(self.config, progress.max_epochs, progress.structures)

    def draws(
        self, batch: Any, streams: Iterable[torch.Generator], whole: torch.Generator
    ) -> Draws:
        return sample_draws_by_structure(batch.natoms, streams, whole, batch.pos.dtype)

    def apply(self, batch: Any, draws: Draws | torch.Generator, progress: Progress) -> None:
        corruption = corrupt_batch(batch, at(self.config, progress), draws)
        attach(batch, corruption, batch.forces)
        if self.hide_forces:
            batch.noise_forces = torch.zeros_like(batch.noise_forces)

    def set_fields(self, batch: Any, values: Mapping[str, Tensor]) -> None:
        set_fields(batch, values)

    def targets(self, base: Sequence[Target], batch: Any, progress: Progress) -> list[Target]:
        found: list[Target] = []
        clean = batch.sigma == 0
        for target in base:
            if target.name == "forces":
                coefficient = self.config.coefficient_at(progress.fraction)
                noise = batch.noise / self.config.noise_scale
                reduction = self.config.reduction
                found += denoising_targets(target, noise, batch.noise_mask, coefficient, reduction)
            elif target.name == "energy":
                found.append(target)
            else:
                rows = clean[batch.batch] if target.level == "atom" else clean
                found.append(replace(target, rows=target.rows & rows))
        return found

    def schedule(self, progress: Progress) -> dict[str, float]:
        found = {}
        if is_scheduled(self.config):
            found["prob"] = probability(self.config, progress)
        if self.config.denoising_coefficient_end is not None:
            found["denoising_coefficient"] = self.config.coefficient_at(progress.fraction)
        return found

    def metrics(self, prediction: Prediction, batch: Any) -> dict[str, Ratio]:
        fields = denoising_fields(batch)
        if fields is None:
            return {}
        values = prediction.values
        return denoising_metrics(
            noise_pred=values["noise"] * self.config.noise_scale,
            noise=fields.noise,
            noise_mask=fields.noise_mask,
            forces_pred=values["forces"],
            forces=batch.forces,
            energy_pred=values["energy"].view(-1),
            energy=batch.energy,
            free=prediction.rows["forces"],
            with_energy=prediction.rows.get("energy"),
            batch=batch.batch,
            sigma=fields.sigma,
            sigmas=self.config.sigmas,
        )

    def metric_names(self) -> list[str]:
        return denoising_metric_names(self.config.sigmas)

    def ordinary(self, batch: Any) -> Tensor:
        return batch.sigma == 0

    def corrupted_atoms(self, batch: Any) -> Tensor:
        return batch.noise_mask

    def noise(self, values: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Tensor]:
        pred = torch.where(batch.noise_mask[:, None], values["noise"] * self.typical_sigma, 0)
        return pred, batch.noise

    @property
    def sigmas(self) -> Sequence[float]:
        dens = self.config
        if dens.sigma is not None:
            return [dens.sigma / 2, dens.sigma, 2 * dens.sigma]
        low, high, _ = dens.ladder
        return [low, math.sqrt(low * high), high]

    @property
    def typical_sigma(self) -> float:
        return self.config.noise_scale

    def corrupting_all(self, sample: Any) -> DeNSObjective | None:
        return DeNSObjective(corrupt_all(self.config, sample)) if self.config.prob > 0 else None

    def probes(self, sigmas: Iterable[float], sample: Any) -> list[Probe]:
        """List each level with the forces encoded and with the forces hidden; none without DeNS."""
        if self.config.prob == 0:
            return []
        return [
            Probe(DeNSObjective(corrupt_all(self.config, sample, sigma), hidden), sigma, hidden)
            for sigma in sigmas
            for hidden in (False, True)
        ]
