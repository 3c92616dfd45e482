"""Batches of structures that are relaxed, and sums over the atoms of each structure."""

from __future__ import annotations

import torch
from torch import Tensor


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
