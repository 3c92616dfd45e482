"""MoreRed as an objective: add noise to relaxed structures, learn how much it is and which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dens.fields import Field
from dens.metrics import LEVEL_MAE, NOISE_MAE, Ratio
from dens.objective import Objective, Prediction, Probe, Progress, Target
from dens.relax.config import MoreRedConfig
from dens.relax.diffuse import MoreRedDraws, diffuse, sample_morered_draws

_SHOWN = (0.05, 0.1, 0.2)  # Å, noise levels of a validation


@dataclass(frozen=True)
class MoreRedObjective(Objective):
    """Molecular relaxation by reverse diffusion (MoreRed, arXiv:2404.10935).

    Structures of the data are taken as relaxed. Outputs of the model are ``noise``, in units of its
    level, and ``time``, tau = t / (T - 1) of the level for each atom; a model may have either.

    Args:
        config: the settings ``optim.morered``.
        level: corrupt every structure at this level; None: at random levels, and pairs.
    """

    config: MoreRedConfig
    level: int | None = None

    section = "morered"
    fields = (
        Field("noise", "atom"),  # (n_atoms, 3) | in units of sigma, zero for fixed atoms
        Field("time", "atom"),  # (n_atoms,) | tau of the structure's level
        Field("level", "structure"),  # (n_structures,) long | index t
        Field("sigma", "structure", "Å"),  # (n_structures,) | of the level
    )
    makes = ("noise", "time")
    in_validation = True

    def describe(self) -> str:
        config = self.config
        highest = config.levels.sigmas[config.max_level - 1]
        pairs = f"; pairs for {config.pair_share:.0%} of the structures" * (config.pair_share > 0)
        return (
            f"MoreRed with {config.max_level} of {config.num_levels} {config.schedule} levels, "
            f"sigma {config.levels.sigmas[0]:.2g} to {highest:.2g} Å{pairs}"
        )

    def draws(
        self, batch: Any, streams: Iterable[torch.Generator], whole: torch.Generator
    ) -> MoreRedDraws:
        return sample_morered_draws(batch.natoms, streams, batch.pos.dtype)

    def apply(self, batch: Any, draws: MoreRedDraws | torch.Generator, progress: Progress) -> None:
        if isinstance(draws, torch.Generator):
            draws = self.draws(batch, [draws] * len(batch.natoms), draws)
        config, level = self.config, self.level
        if level is not None:  # the middle of its share of the levels of training
            middle = (level + 0.5) / config.max_level
            draws = draws._replace(levels=torch.full_like(draws.levels, middle))
        diffused = diffuse(
            batch.pos,
            batch.batch,
            batch.natoms,
            config.levels,
            config.max_level,
            draws,
            fixed=getattr(batch, "fixed", None),
            pos_start=getattr(batch, "pos_start", None),
            pair_share=config.pair_share if level is None else 0.0,
            cell=getattr(batch, "cell", None),
        )
        batch.pos = diffused.pos
        time = config.levels.tau(diffused.level).to(batch.pos.dtype)[batch.batch]
        values = {**diffused._asdict(), "time": time}
        self.set_fields(batch, values)

    def targets(self, base: Sequence[Target], batch: Any, progress: Progress) -> list[Target]:
        return list(base)  # their values are the fields of the same names

    def metrics(self, prediction: Prediction, batch: Any) -> dict[str, Ratio]:
        found, free = {}, self.corrupted_atoms(batch)
        values = prediction.values
        if "noise" in values and free.any():
            pred, true = self.noise(values, batch)
            error = (pred - true)[free].abs()
            found[NOISE_MAE] = Ratio(error.sum().item(), error.numel())
        if "time" in values:
            levels = self.config.levels
            time = mean_over_free(values["time"].view(-1), batch)
            error = (levels.sigma(levels.index_of(time)) - batch.sigma).abs()
            found[LEVEL_MAE] = Ratio(error.sum().item(), len(error))
        return found

    def metric_names(self) -> list[str]:
        return [NOISE_MAE, LEVEL_MAE]

    def ordinary(self, batch: Any) -> Tensor:
        return torch.ones_like(batch.natoms, dtype=torch.bool)

    def corrupted_atoms(self, batch: Any) -> Tensor:
        return batch.fixed == 0

    def noise(self, values: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Tensor]:
        sigma = batch.sigma[batch.batch][:, None]
        free = self.corrupted_atoms(batch)[:, None]
        pred = values["noise"] if "noise" in values else torch.zeros_like(batch.noise)
        return torch.where(free, pred * sigma, 0), batch.noise * sigma

    @property
    def sigmas(self) -> Sequence[float]:
        highest = self.config.levels.sigmas[self.config.max_level - 1]
        return [s for s in _SHOWN if s <= highest] or [highest]

    @property
    def typical_sigma(self) -> float:
        return min(self.sigmas, key=lambda sigma: abs(sigma - _SHOWN[1]))

    def corrupting_all(self, sample: Any) -> MoreRedObjective:
        return self

    def probes(self, sigmas: Iterable[float], sample: Any) -> list[Probe]:
        nearest = {sigma: int(self.config.levels.nearest(sigma)) for sigma in sigmas}
        last = self.config.max_level - 1
        return [Probe(replace(self, level=min(t, last)), sigma) for sigma, t in nearest.items()]


def mean_over_free(values: Tensor, batch: Any) -> Tensor:
    """Average a value of each atom over the free atoms of each structure: (n_structures,).

    Zero for a structure without a free atom.
    """
    free = (batch.fixed == 0).to(values.dtype)
    sums = values.new_zeros(2, len(batch.natoms))
    total, count = sums.index_add(1, batch.batch, torch.stack([values * free, free]))
    return total / count.clamp(min=1)
