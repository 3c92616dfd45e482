"""A training method of a user's own: displaced structures with energies by Taylor expansion.

.. math:: E(p + \\delta) \\approx E(p) - \\sum_i f_i \\cdot \\delta_i

Labels of forces make labels of energies nearby, to second order in the displacement (Cooper et
al., npj Computational Materials 6, 54, 2020). Forces of displaced structures are not known, and are
not trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dens.fields import Field
from dens.metrics import NOISY_ENERGY_MAE, Ratio
from dens.objective import Objective, Prediction, Probe, Progress, Target


@dataclass(frozen=True)
class TaylorObjective(Objective):
    """Training on structures that are displaced at random, with first-order energies.

    Args:
        prob: probability that a structure is displaced.
        scale: standard deviation of the displacements, Å.
    """

    prob: float = 0.5
    scale: float = 0.02

    section = "taylor"
    fields = (
        Field("noise", "atom", "Å"),  # (n_atoms, 3) | displacement, zero for fixed atoms
        Field("sigma", "structure", "Å"),  # (n_structures,) | zero where clean
    )

    def describe(self) -> str:
        return f"first-order energies of displacements by {self.scale:g} Å, prob {self.prob:g}"

    def draws(
        self, batch: Any, streams: Iterable[torch.Generator], whole: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        coins, noise = [], []
        for n, stream in zip(batch.natoms.tolist(), streams, strict=True):
            coins.append(torch.rand((), generator=stream))
            noise.append(torch.randn(n, 3, generator=stream, dtype=batch.pos.dtype))
        return torch.stack(coins), torch.cat(noise)

    def apply(self, batch: Any, draws: tuple[Tensor, Tensor], progress: Progress) -> None:
        coins, noise = draws
        sigma = torch.where(coins < self.prob, self.scale, 0.0).to(batch.pos)
        moved = sigma[batch.batch][:, None] * noise.to(batch.pos)
        moved = torch.where(batch.fixed[:, None] == 0, moved, 0)
        work = (batch.forces * moved).sum(1)  # (n_atoms,) | eV
        change = torch.zeros_like(sigma).index_add_(0, batch.batch, work.to(sigma))
        batch.energy = batch.energy - change.view_as(batch.energy).to(batch.energy)
        batch.pos = batch.pos + moved
        self.set_fields(batch, {"noise": moved, "sigma": sigma})

    def targets(self, base: Sequence[Target], batch: Any, progress: Progress) -> list[Target]:
        clean = self.ordinary(batch)
        rows = {"atom": clean[batch.batch], "structure": clean}
        return [
            target
            if target.name == "energy"
            else replace(target, rows=target.rows & rows[target.level])
            for target in base
        ]

    def metrics(self, prediction: Prediction, batch: Any) -> dict[str, Ratio]:
        displaced = ~self.ordinary(batch)
        if not displaced.any():
            return {}
        error = (prediction.values["energy"].view(-1) - batch.energy.view(-1)).abs()[displaced]
        return {NOISY_ENERGY_MAE: Ratio(error.sum().item(), len(error))}

    def metric_names(self) -> list[str]:
        return [NOISY_ENERGY_MAE]

    def ordinary(self, batch: Any) -> Tensor:
        return batch.sigma == 0

    def corrupted_atoms(self, batch: Any) -> Tensor:
        return (batch.noise != 0).any(1)

    def noise(self, values: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(batch.noise), batch.noise  # the model predicts none

    @property
    def sigmas(self) -> Sequence[float]:
        return [self.scale]

    @property
    def typical_sigma(self) -> float:
        return self.scale

    def corrupting_all(self, sample: Any) -> None:
        return None

    def probes(self, sigmas: Iterable[float], sample: Any) -> list[Probe]:
        return []  # nothing to denoise in validation
