"""Forward process of MoreRed: draw a noise level for each structure and add noise of that level.

``sample_*`` functions draw random numbers from explicit generators, on the CPU; everything else is
deterministic. Shapes: ``n_atoms`` atoms of ``n_structures`` structures; ``batch`` holds the
structure of each atom, as in PyG.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from dens.noise_levels import NoiseLevels
from dens.relax.quality import displacement
from dens.relax.structures import any_in_structure, centre, count_in_structure


class MoreRedDraws(NamedTuple):
    """The random numbers of a batch; they depend on its shape, on no setting."""

    levels: Tensor  # (n_structures,) | in [0, 1), position among the levels of training
    coins: Tensor  # (n_structures,) | in [0, 1), whether a pair stands in for the noise
    unit_noise: Tensor  # (n_atoms, 3) | standard normal


class Diffused(NamedTuple):
    """Structures with noise; ``pos`` is the original + ``sigma * noise`` up to rounding."""

    pos: Tensor  # (n_atoms, 3) | Å
    noise: Tensor  # (n_atoms, 3) | in units of sigma, zero for fixed atoms
    level: Tensor  # (n_structures,) long | index t
    sigma: Tensor  # (n_structures,) | Å, of the level


def sample_morered_draws(
    natoms: Tensor, generators: Iterable[torch.Generator], dtype: torch.dtype = torch.float32
) -> MoreRedDraws:
    """Draw the random numbers of each structure from its own generator.

    They then depend neither on the structure's batch nor on its rank.

    Args:
        natoms: (n_structures,), number of atoms of each structure.
        generators: one for each structure.
        dtype: precision of the noise.
    """
    numbers, noise = [], []
    for n, generator in zip(natoms.tolist(), generators, strict=True):
        numbers.append(torch.rand(2, generator=generator))
        noise.append(torch.randn(n, 3, generator=generator, dtype=dtype))
    levels, coins = torch.stack(numbers).unbind(1)
    return MoreRedDraws(levels, coins, torch.cat(noise))


def diffuse(
    pos: Tensor,
    batch: Tensor,
    natoms: Tensor,
    levels: NoiseLevels,
    max_level: int,
    draws: MoreRedDraws,
    *,
    fixed: Tensor | None = None,
    pos_start: Tensor | None = None,
    pair_share: float = 0.0,
    cell: Tensor | None = None,
) -> Diffused:
    r"""Add noise to relaxed structures (arXiv:2404.10935, in coordinates that keep their size).

    .. math:: p_t = p_0 + \sigma_t \epsilon,\quad \epsilon_i \sim N(0, I)
        \text{ for free atoms},\quad t \sim U\{0, \ldots, \text{max\_level} - 1\}

    where :math:`\epsilon` is centred over structures without fixed atoms. For a chosen share of the
    structures with an unrelaxed counterpart, its displacement d stands in for the noise: t is the
    level nearest to the root mean square of d's components over free atoms, and
    :math:`\epsilon = d / \sigma_t`. Half of them start at the unrelaxed structure, the others at a
    uniformly drawn fraction of the way to it, where a sampler comes by.

    Args:
        pos: (n_atoms, 3), Å, of relaxed structures; not modified.
        batch: (n_atoms,), index of the structure of each atom.
        natoms: (n_structures,), number of atoms of each structure.
        levels: all noise levels.
        max_level: number of levels to draw from, the lowest ones.
        draws: the random numbers.
        fixed: (n_atoms,), nonzero for atoms that get no noise; None: there are none.
        pos_start: (n_atoms, 3), Å, of unrelaxed structures; one with a row that is not finite
            counts as missing. Open structures without fixed atoms are superposed.
        pair_share: probability that a pair is used.
        cell: (n_structures, 3, 3), Å, for the minimum image of pairs; zero or None: open.
    """
    draws = MoreRedDraws(*(numbers.to(pos.device) for numbers in draws))
    # the product may round up to the next integer
    level = (draws.levels * max_level).long().clamp(max=max_level - 1)
    noise = draws.unit_noise.to(pos.dtype)
    if fixed is not None:
        noise = torch.where((fixed == 0)[:, None], noise, 0)
    noise = centre(noise, batch, natoms, fixed)
    if pos_start is not None and pair_share > 0:
        has_pair = ~any_in_structure(~pos_start.isfinite().all(1), batch, natoms)
        chosen = has_pair & (draws.coins < pair_share)
        start = torch.where(chosen[batch][:, None], pos_start, pos)
        moved = displacement(start, pos, batch, natoms, fixed=fixed, cell=cell)
        nearest = levels.nearest(_rms(moved, batch, natoms, fixed)).clamp(max=max_level - 1)
        level = torch.where(chosen, nearest, level)
        scaled = moved / levels.sigma(level, moved.dtype)[batch][:, None]
        noise = torch.where(chosen[batch][:, None], scaled, noise)
    sigma = levels.sigma(level, pos.dtype)
    return Diffused(pos + sigma[batch][:, None] * noise, noise, level, sigma)


def _rms(vectors: Tensor, batch: Tensor, natoms: Tensor, fixed: Tensor | None) -> Tensor:
    """Return the root mean square of components over free atoms, where others are zero."""
    free = torch.ones_like(batch) if fixed is None else fixed == 0
    number = 3 * count_in_structure(free, batch, natoms).clamp(min=1)
    total = vectors.new_zeros(len(natoms)).index_add(0, batch, vectors.square().sum(1))
    return (total / number).sqrt()
