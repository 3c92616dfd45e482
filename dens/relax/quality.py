"""Distances between structures: superposition and minimum image, batched, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from dens.relax.structures import centre


def superpose(pos: Tensor, reference: Tensor, batch: Tensor, natoms: Tensor) -> Tensor:
    r"""Superpose structures on reference structures by proper rotations and translations.

    .. math:: \sum_{i \in a} (p_i - \bar p)(q_i - \bar q)^T = U S V^T,\quad
        R = V\,\mathrm{diag}(1, 1, \det(VU^T))\,U^T

    minimises the root mean square distance (Kabsch, doi:10.1107/S0567739476001873).

    Args:
        pos: (n_atoms, 3), Å, finite.
        reference: (n_atoms, 3), Å, finite, the same atoms in the same order.
        batch: (n_atoms,), index of the structure of each atom.
        natoms: (n_structures,), number of atoms of each structure.

    Returns:
        (n_atoms, 3), Å, the moved positions, in the type of ``pos``.
    """
    centred = centre(pos.double(), batch, natoms)
    target = reference.double()
    centred_target = centre(target, batch, natoms)
    products = centred[:, :, None] * centred_target[:, None, :]
    covariance = products.new_zeros(len(natoms), 3, 3).index_add(0, batch, products)
    u, _, vt = torch.linalg.svd(covariance)
    sign = torch.det(u @ vt).sign()
    last = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=1)
    # rows are vectors: p R^T = p U diag V^T
    rotation = (u * last[:, None, :]) @ vt
    moved = torch.einsum("ij,ijk->ik", centred, rotation[batch])
    return (moved + target - centred_target).to(pos.dtype)


def minimum_image(vectors: Tensor, cell: Tensor, batch: Tensor) -> Tensor:
    """Replace vectors by their shortest periodic images.

    Exact for cells whose vectors are as short as possible (reduced ones), and for any cell where
    the image is shorter than half the distance of its lattice planes.

    Args:
        vectors: (n_atoms, 3), Å.
        cell: (n_structures, 3, 3), Å, rows are vectors; zero for open structures, whose vectors
            stay.
        batch: (n_atoms,), index of the structure of each atom.

    Returns:
        (n_atoms, 3), Å, in the type of ``vectors``.
    """
    is_periodic = cell.flatten(1).any(1)
    unit = torch.eye(3, dtype=torch.float64, device=cell.device)
    lattice = torch.where(is_periodic[:, None, None], cell.double(), unit)
    fractions = torch.einsum("ij,ijk->ik", vectors.double(), torch.linalg.inv(lattice)[batch])
    around = torch.cartesian_prod(*[torch.tensor([0.0, -1.0, 1.0])] * 3).to(lattice)
    # the first candidate, without a shift, wins ties
    candidates = (fractions - fractions.round())[:, None] + around
    images = torch.einsum("isj,ijk->isk", candidates, lattice[batch])
    shortest = images.square().sum(2).argmin(1)[:, None, None].expand(-1, 1, 3)
    found = images.gather(1, shortest)[:, 0].to(vectors.dtype)
    return torch.where(is_periodic[batch][:, None], found, vectors)
