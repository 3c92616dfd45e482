"""Structures and batches of them to relax, the denoiser's interface, sums over atoms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dens.noise_levels import NoiseLevels


@dataclass(frozen=True, eq=False)
class Structure:
    """A structure to relax; it is periodic in all directions if it has a cell, else in none."""

    numbers: Tensor  # (n_atoms,) long | atomic numbers
    pos: Tensor  # (n_atoms, 3) float64 | Å, not necessarily within the cell
    cell: Tensor | None = None  # (3, 3) float64 | Å, rows are vectors
    fixed: Tensor | None = None  # (n_atoms,) bool | atoms that must not move; None: no atom

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def free(self) -> Tensor:
        """The atoms that may move: (n_atoms,) bool."""
        if self.fixed is None:
            return torch.ones(len(self), dtype=torch.bool)
        return ~self.fixed

    def distance_to(self, pos: Tensor) -> float:
        """Return the root mean square distance over free atoms from other positions, Å, as is."""
        squared = (pos - self.pos)[self.free].square().sum(1)
        return squared.mean().sqrt().item() if len(squared) else 0.0


@dataclass(frozen=True, eq=False)
class Structures:
    """A batch of structures with the names and shapes of PyG's batches, on the CPU."""

    pos: Tensor  # (n_atoms, 3) float64 | Å, not necessarily within the cell
    atomic_numbers: Tensor  # (n_atoms,) long
    natoms: Tensor  # (n_structures,) long
    batch: Tensor  # (n_atoms,) long | index of the structure of each atom
    cell: Tensor  # (n_structures, 3, 3) float64 | Å, rows are vectors; zero for open structures
    pbc: Tensor  # (n_structures, 3) bool
    fixed: Tensor  # (n_atoms,) bool

    @classmethod
    def collate(
        cls, structures: Sequence[Structure], pos: Sequence[Tensor] | None = None
    ) -> Structures:
        """Join structures, at other positions if given: (n_atoms, 3) of each, Å."""
        natoms = torch.tensor([len(structure) for structure in structures])
        open_cell = torch.zeros(3, 3, dtype=torch.float64)
        cells = [open_cell if s.cell is None else s.cell for s in structures]
        is_periodic = torch.tensor([s.cell is not None for s in structures])
        return cls(
            pos=torch.cat([s.pos for s in structures] if pos is None else list(pos)),
            atomic_numbers=torch.cat([s.numbers for s in structures]),
            natoms=natoms,
            batch=torch.arange(len(natoms)).repeat_interleave(natoms),
            cell=torch.stack(cells),
            pbc=is_periodic[:, None].expand(-1, 3),
            fixed=~torch.cat([s.free for s in structures]),
        )

    def __len__(self) -> int:
        return len(self.natoms)


class Denoised(NamedTuple):
    """Output of a denoiser: the noise of each atom, the level of each structure's noise."""

    noise: Tensor  # (n_atoms, 3) | in units of the level's sigma
    level: Tensor  # (n_structures,) long | index t


class Denoiser(Protocol):
    """A model that finds how much noise structures have, and which.

    It brings positions into the form that its network reads, such as within the cell, and returns
    tensors on any device. Its noise need not be centred, and may be anything for fixed atoms.
    Structures are checked against the limits that it has as attributes, see
    :class:`dens.relax.atoms.conversion.Limits`. An attribute ``defaults``, if it has one, is a
    :class:`dens.relax.config.Defaults`.
    """

    levels: NoiseLevels

    def __call__(self, batch: Structures, level: Tensor | None) -> Denoised:
        """Find the noise of a batch.

        Args:
            batch: the structures.
            level: (n_structures,) long, the levels of the noise where the sampler knows them; None:
                the denoiser finds them too.
        """
        ...


def centre(vectors: Tensor, batch: Tensor, natoms: Tensor, fixed: Tensor | None = None) -> Tensor:
    """Subtract the mean of each structure's vectors, unless an atom of the structure is fixed.

    Args:
        vectors: (n_atoms, 3).
        batch: (n_atoms,), index of the structure of each atom.
        natoms: (n_structures,), number of atoms of each structure.
        fixed: (n_atoms,), nonzero for fixed atoms; None: there are none.

    Returns:
        (n_atoms, 3); the vectors of structures with a fixed atom as they are.
    """
    total = vectors.new_zeros(len(natoms), 3).index_add(0, batch, vectors)
    mean = total / natoms[:, None]
    if fixed is not None:
        mean = torch.where(any_in_structure(fixed != 0, batch, natoms)[:, None], 0, mean)
    return vectors - mean[batch]


def any_in_structure(mask: Tensor, batch: Tensor, natoms: Tensor) -> Tensor:
    """Tell which structures have an atom in a mask: (n_structures,) bool."""
    return count_in_structure(mask, batch, natoms) > 0


def count_in_structure(mask: Tensor, batch: Tensor, natoms: Tensor) -> Tensor:
    """Count the atoms of each structure that are in a mask: (n_structures,) long."""
    return natoms.new_zeros(len(natoms), dtype=torch.long).index_add(0, batch, mask.long())
