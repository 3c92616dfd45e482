"""Evaluate relaxations: starts with noise, and how near the results come to the true structures.

Nothing here reads files or builds models: benchmarks and a trainer's validation call it alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from dens.random import Stream
from dens.relax.config import RelaxSettings
from dens.relax.loop import Relaxed, relax_structures
from dens.relax.quality import distances
from dens.relax.samplers import draw_unit_noise
from dens.relax.structures import Denoiser, Structure, Structures, centre

_GRAIN = 1e-6  # Å, to which noise levels are told apart


@dataclass(frozen=True, eq=False)
class Measured:
    """Outcomes of the relaxations of ``n`` structures, beside the true structures."""

    before: Tensor  # (n,) float64 | Å, RMSD of the start from the true structure
    after: Tensor  # (n,) float64 | Å, RMSD of the result from the true structure
    calls: Tensor  # (n,) float64 | of the model, or steps of another method; NaN: not known
    converged: Tensor  # (n,) bool
    found: Tensor  # (n,) float64 | Å, noise level that the first call found; NaN: not asked

    def __len__(self) -> int:
        return len(self.before)

    def select(self, rows: Tensor | Sequence[int]) -> Measured:
        """Return the outcomes of some structures, by their index."""
        rows = torch.as_tensor(rows, dtype=torch.long)
        return Measured(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def summary(self) -> dict[str, float]:
        """Summarise the outcomes: distances in Å, ``ratio`` of medians, shares in [0, 1], calls."""
        before, after = _spread(self.before), _spread(self.after)
        calls = self.calls[~self.calls.isnan()].numpy()
        middle, high = np.quantile(calls, [0.5, 0.99]) if len(calls) else [float("nan")] * 2
        return {
            "n": len(self),
            **{f"before_{name}": value for name, value in before.items()},
            **{f"after_{name}": value for name, value in after.items()},
            "ratio": after["median"] / before["median"] if before["median"] else float("nan"),
            "nearer": (self.after < self.before).double().mean().item(),
            "converged": self.converged.double().mean().item(),
            "calls_median": float(middle),
            "calls_p99": float(high),
        }


def _spread(values: Tensor) -> dict[str, float]:
    middle, high = np.quantile(values.numpy(), [0.5, 0.9])
    return {"median": float(middle), "p90": float(high), "mean": float(values.mean())}


def noisy_starts(
    structures: Sequence[Structure], sigma: float, seed: int, numbers: Sequence[int]
) -> list[Structure]:
    """Add noise to structures: the same whichever others there are, and in whatever order.

    Free atoms get independent normal noise, from which the mean is subtracted in structures without
    fixed atoms.

    Args:
        structures: the true structures; not modified.
        sigma: Å, standard deviation of each component.
        seed: of the random numbers.
        numbers: of the structures, which decide their random numbers with ``sigma`` and ``seed``.
    """
    grains = round(sigma / _GRAIN)
    streams = [Stream.STARTS.generator(seed, grains, number) for number in numbers]
    batch = Structures.collate(structures)
    noise = draw_unit_noise(batch.natoms.tolist(), streams)
    noise = torch.where(batch.fixed[:, None], 0, noise)
    noise = centre(noise, batch.batch, batch.natoms, batch.fixed)
    pos = torch.where(batch.fixed[:, None], batch.pos, batch.pos + sigma * noise)
    parts = zip(structures, pos.split(batch.natoms.tolist()), strict=True)
    return [replace(structure, pos=moved) for structure, moved in parts]


def rmsd(structures: Sequence[Structure], positions: Sequence[Tensor]) -> Tensor:
    """Compute the RMSD of positions from structures, see :func:`dens.relax.quality.distances`.

    Args:
        structures: the true structures.
        positions: (n_atoms, 3) of each, Å.

    Returns:
        (n,) float64, Å.
    """
    true = Structures.collate(structures)
    moved = Structures.collate(structures, positions)
    cell, fixed = true.cell, true.fixed
    return distances(moved.pos, true.pos, true.batch, true.natoms, fixed=fixed, cell=cell).rmsd


def measure(
    structures: Sequence[Structure], starts: Sequence[Structure], relaxed: Sequence[Relaxed]
) -> Measured:
    """Measure relaxations beside the true structures.

    Args:
        structures: the true structures.
        starts: what was relaxed, in their order.
        relaxed: the results, in their order.
    """
    return Measured(
        before=rmsd(structures, [start.pos for start in starts]),
        after=rmsd(structures, [one.pos for one in relaxed]),
        calls=torch.tensor([float(one.calls) for one in relaxed], dtype=torch.float64),
        converged=torch.tensor([one.converged for one in relaxed]),
        found=torch.tensor([one.sigmas[0] for one in relaxed], dtype=torch.float64),
    )


def rank_correlation(measured: Sequence[Measured]) -> float:
    """Compute Spearman's correlation of the noise level found first and the true RMSD.

    Returns:
        The correlation over all structures together; NaN where either is the same for all.
    """
    found = torch.cat([one.found for one in measured]).numpy()
    before = torch.cat([one.before for one in measured]).numpy()
    if np.ptp(found) == 0 or np.ptp(before) == 0:
        return float("nan")
    return float(spearmanr(found, before).statistic)


def levels_found(
    structures: Sequence[Structure],
    denoiser: Denoiser,
    level: int,
    seed: int,
    numbers: Sequence[int],
    *,
    batch_atoms: int = RelaxSettings().batch_atoms,
) -> Tensor:
    """Ask a denoiser for the level of structures with noise of a known level.

    Args:
        structures: the true structures.
        denoiser: the model.
        level: the true level t.
        seed, numbers: of the noise, as for :func:`noisy_starts`.
        batch_atoms: atoms of a batch.

    Returns:
        (n,) float64, the levels t that it finds.
    """
    starts = noisy_starts(structures, denoiser.levels.sigmas[level], seed, numbers)
    once = RelaxSettings(max_calls=1, batch_atoms=batch_atoms)
    found = relax_structures(starts, denoiser, once, seed, numbers=numbers)
    return torch.tensor([float(one.levels[0]) for one in found], dtype=torch.float64)
