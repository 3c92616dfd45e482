"""ASE's constraints: which atoms they hold, and whether they limit others."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.constraints import (
    FixAtoms,
    FixCartesian,
    FixConstraint,
    FixedLine,
    FixedPlane,
    FixScaled,
)

_DIRECTIONS = (FixAtoms, FixCartesian, FixScaled, FixedPlane, FixedLine)


def fixed_atoms(atoms: Atoms) -> np.ndarray:
    """Mark the atoms that ASE's constraints hold in all directions, (n_atoms,) bool.

    `FixAtoms` does; so do `FixCartesian`, `FixScaled`, `FixedPlane` and `FixedLine` where all
    directions that they take from an atom add up to three. Other constraints are ignored.
    """
    fixed, _ = _held_directions(atoms)
    return fixed


def has_other_constraints(atoms: Atoms) -> bool:
    """Tell whether a constraint limits atoms that `fixed_atoms` does not mark."""
    fixed, partly = _held_directions(atoms)
    others = (c for c in atoms.constraints if not isinstance(c, _DIRECTIONS))
    return bool((partly & ~fixed).any()) or any(not _holds_only(c, fixed) for c in others)


def _holds_only(constraint: FixConstraint, fixed: np.ndarray) -> bool:
    try:
        indices = constraint.get_indices()
    except (AttributeError, NotImplementedError):  # it concerns the structure as a whole
        return False
    return len(indices) > 0 and bool(fixed[indices].all())


def _held_directions(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Mark the atoms held in all directions and those held in some, each (n_atoms,) bool."""
    fixed = np.zeros(len(atoms), dtype=bool)
    held = np.zeros((len(atoms), 3, 3))  # sum of n n^T over the unit vectors n of held directions
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
        elif isinstance(constraint, _DIRECTIONS):
            held[constraint.index] += _projection(constraint, atoms)
    if held.any():
        fixed |= np.linalg.eigvalsh(held)[:, 0] > 1e-6
    return fixed, fixed | held.any(axis=(1, 2))


def _projection(constraint: FixConstraint, atoms: Atoms) -> np.ndarray:
    """Return n n^T, (3, 3), summed over the directions n that a constraint takes from an atom."""
    if isinstance(constraint, FixedPlane | FixedLine):
        along = np.outer(constraint.dir, constraint.dir) / np.dot(constraint.dir, constraint.dir)
        return along if isinstance(constraint, FixedPlane) else np.eye(3) - along
    # a scaled coordinate stays where the step is perpendicular to its reciprocal vector
    normals = np.eye(3) if isinstance(constraint, FixCartesian) else atoms.cell.reciprocal().array
    normals = normals[np.broadcast_to(constraint.mask, 3)]
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    return normals.T @ normals
