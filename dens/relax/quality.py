"""Distances between structures, with superposition or minimum image; identity of molecules."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dens.relax.structures import any_in_structure, centre, count_in_structure


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


def displacement(
    pos: Tensor,
    reference: Tensor,
    batch: Tensor,
    natoms: Tensor,
    *,
    fixed: Tensor | None = None,
    cell: Tensor | None = None,
) -> Tensor:
    """Measure how structures are displaced from references with the same atoms.

    Open structures without fixed atoms are superposed by rotation and translation. In periodic ones
    displacements are minimum images, from which the mean is subtracted unless atoms are fixed.

    Args:
        pos, reference: (n_atoms, 3), Å, finite.
        batch: (n_atoms,), index of the structure of each atom.
        natoms: (n_structures,), number of atoms of each structure.
        fixed: (n_atoms,), nonzero for fixed atoms; None: there are none.
        cell: (n_structures, 3, 3), Å, rows are vectors; zero or None: open.

    Returns:
        (n_atoms, 3), Å, zero for fixed atoms.
    """
    moved = pos - reference
    superposable = torch.ones(len(natoms), dtype=torch.bool, device=pos.device)
    if cell is not None:
        cell = cell.view(-1, 3, 3)
        moved = minimum_image(moved, cell, batch)
        superposable &= ~cell.flatten(1).any(1)
    if fixed is not None:
        superposable &= ~any_in_structure(fixed != 0, batch, natoms)
        moved = torch.where((fixed == 0)[:, None], moved, 0)
    if superposable.any():
        superposed = superpose(pos, reference, batch, natoms) - reference
        moved = torch.where(superposable[batch][:, None], superposed, moved)
    return centre(moved, batch, natoms, fixed)


class Distances(NamedTuple):
    """Distances of structures from their references, over free atoms; 0 without a free atom."""

    rmsd: Tensor  # (n_structures,) | Å, root of the mean squared distance of atoms
    mean: Tensor  # (n_structures,) | Å, mean distance of atoms


def distances(
    pos: Tensor,
    reference: Tensor,
    batch: Tensor,
    natoms: Tensor,
    *,
    fixed: Tensor | None = None,
    cell: Tensor | None = None,
) -> Distances:
    """Measure the distances of structures from references; arguments as of :func:`displacement`."""
    moved = displacement(pos, reference, batch, natoms, fixed=fixed, cell=cell)
    squared = moved.double().square().sum(1)
    free = torch.ones_like(batch) if fixed is None else fixed == 0
    number = count_in_structure(free, batch, natoms).clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return values.new_zeros(len(natoms)).index_add(0, batch, values) / number

    return Distances(mean(squared).sqrt(), mean(squared.sqrt()))


def share_within(values: Tensor, thresholds: Tensor | None = None) -> float:
    """Compute the share of distances below thresholds, averaged over thresholds (ADwT).

    For the mean distances of structures and the default thresholds, 0.01 to 0.499 Å in steps of
    0.001 Å, it is IS2RS's measure of success, between 0 and 1 (arXiv:2010.09990).

    Args:
        values: (n,), Å, distances of structures or of atoms.
        thresholds: (k,), Å.
    """
    if thresholds is None:
        thresholds = torch.arange(10, 500, dtype=torch.float64) / 1000
    return (values.double()[:, None] < thresholds.to(values.device)).double().mean().item()


def same_molecule(numbers: Tensor, pos: Tensor, reference: Tensor) -> bool | None:
    """Tell whether two molecules have the same bonds and stereochemistry, as RDKit perceives them.

    Args:
        numbers: (n_atoms,), atomic numbers of a neutral molecule.
        pos, reference: (n_atoms, 3), Å.

    Returns:
        None if no bonds can be perceived in the reference; False if none can in ``pos``.

    Raises:
        ValueError: RDKit is not installed.
    """
    expected = _smiles(numbers, reference)
    return None if expected is None else _smiles(numbers, pos) == expected


def perceive_molecule(numbers: Tensor, pos: Tensor) -> Any | None:
    """Perceive the bonds of a neutral molecule as an RDKit ``Mol``; None if that fails.

    Args:
        numbers: (n_atoms,), atomic numbers.
        pos: (n_atoms, 3), Å.

    Raises:
        ValueError: RDKit is not installed.
    """
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdDetermineBonds
    except ImportError:
        raise ValueError(
            "bonds of molecules are perceived by RDKit, which is not installed: "
            "pip install 'fairchem-dens[baselines]'"
        ) from None
    symbol = Chem.GetPeriodicTable().GetElementSymbol
    rows = zip(numbers.tolist(), pos.tolist(), strict=True)
    lines = [f"{symbol(int(n))} {x:.8f} {y:.8f} {z:.8f}" for n, (x, y, z) in rows]
    with rdBase.BlockLogs():
        try:
            molecule = Chem.MolFromXYZBlock("\n".join([str(len(lines)), "", *lines, ""]))
            rdDetermineBonds.DetermineBonds(molecule, charge=0)
        except (ValueError, RuntimeError):  # RDKit's errors for valences that fit nothing
            return None
    return molecule


def _smiles(numbers: Tensor, pos: Tensor) -> str | None:
    """Write the bonds and stereochemistry of a neutral molecule; None if none are perceived."""
    molecule = perceive_molecule(numbers, pos)
    if molecule is None:
        return None
    from rdkit import Chem

    return Chem.MolToSmiles(molecule)
