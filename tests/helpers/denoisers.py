"""Denoisers without a network, and structures for them."""

from __future__ import annotations

import torch
from torch import Tensor

from dens.noise_levels import NoiseLevels
from dens.relax.structures import Denoised, Structure, Structures, count_in_structure

LENGTH = 1.5  # Å, of all springs


class Recording:
    """A base of denoisers that notes the batches and levels that it is asked for."""

    def __init__(self, levels: NoiseLevels | None = None) -> None:
        self.levels = levels or NoiseLevels.polynomial()
        self.asked: list[tuple[Structures, Tensor | None]] = []

    def __call__(self, batch: Structures, level: Tensor | None) -> Denoised:
        self.asked.append((batch, level))
        moved = self.displacement(batch)
        if level is None:
            free = count_in_structure(~batch.fixed, batch.batch, batch.natoms)
            squared = moved.square().sum(1) * ~batch.fixed
            total = squared.new_zeros(len(batch)).index_add(0, batch.batch, squared)
            level = self.levels.nearest((total / (3 * free)).sqrt())
        return Denoised(moved / self.levels.sigma(level)[batch.batch][:, None], level)


class ExactDenoiser(Recording):
    """The exact score of noise around known structures, which it knows by their atomic numbers."""

    def __init__(self, references: list[Structure], levels: NoiseLevels | None = None) -> None:
        super().__init__(levels)
        self.references = {tuple(s.numbers.tolist()): s.pos for s in references}

    def displacement(self, batch: Structures) -> Tensor:
        """Return the displacement from the known structures, (n_atoms, 3), Å."""
        numbers = batch.atomic_numbers.split(batch.natoms.tolist())
        return batch.pos - torch.cat([self.references[tuple(n.tolist())] for n in numbers])


class SpringDenoiser(Recording):
    """Springs between all pairs of nearby atoms of a structure; they rotate with it.

    ``stiffness`` scales displacements: from 1 on, atoms of a chain overshoot.
    """

    def __init__(self, levels: NoiseLevels | None = None, stiffness: float = 0.3) -> None:
        super().__init__(levels)
        self.stiffness = stiffness

    def displacement(self, batch: Structures) -> Tensor:
        """Return the displacement from where the springs pull, (n_atoms, 3), Å."""
        parts = []
        for pos in batch.pos.split(batch.natoms.tolist()):
            vectors = pos[:, None] - pos[None]
            length = vectors.norm(dim=2).clamp(min=1e-9)
            near = (length < 1.6 * LENGTH) & ~torch.eye(len(pos), dtype=torch.bool)
            stretch = torch.where(near, (length - LENGTH) / length, 0)
            parts.append(self.stiffness * (stretch[:, :, None] * vectors).sum(1))
        return torch.cat(parts)


def chain(n_atoms: int, seed: int = 0, noise: float = 0.0, n_fixed: int = 0) -> Structure:
    """Build a zigzag chain whose neighbours are ``LENGTH`` apart, displaced by noise in Å."""
    number = torch.arange(n_atoms, dtype=torch.float64)
    rise = 0.5 * LENGTH * (number % 2)
    run = number * LENGTH * 0.75**0.5
    pos = torch.stack([run, rise, torch.zeros_like(run)], dim=1)
    generator = torch.Generator().manual_seed(seed)
    moved = noise * torch.randn(n_atoms, 3, generator=generator, dtype=torch.float64)
    fixed = torch.arange(n_atoms) < n_fixed
    return Structure(
        numbers=torch.arange(n_atoms) % 5 + 1 + 5 * (seed % 10),
        pos=torch.where(fixed[:, None], pos, pos + moved),
        fixed=fixed if n_fixed else None,
    )
