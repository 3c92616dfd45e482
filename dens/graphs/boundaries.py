"""Bring structures to one kind of boundaries: a record is periodic in all directions or in none.

A direction that is open in the source, as that across a slab, may be periodic in the record if
vacuum separates the images by more than the cutoff: no pair of atoms sees the difference.
"""

from __future__ import annotations

from collections import Counter
from math import ceil, floor

import numpy as np
from ase import Atoms

CUTOFF = 12.0  # Å, by default: the largest of the recipes
MIN_VACUUM = 8.0  # Å; across narrower gaps atoms interact, and labels with images may be meant
MARGIN = 1.0  # Å of vacuum beyond the cutoff, where a cell vector is made
STEP = 5.0  # Å; made cell vectors are multiples, so that they rarely change along a trajectory
# of conversion
ADVICE = "if the cell is that of a crystal give --pbc TTT, if the structure is open --pbc FFF"
_PARALLEL = 1e-6  # volume over the product of the lengths
_VACUUM = {"periodic_made": "vacuum_of_slab", "boxed": "vacuum_of_box"}


def settle_boundaries(
    atoms: Atoms,
    counts: Counter,
    forced: str | None = None,
    cutoff: float = CUTOFF,
    advice: str = ADVICE,
) -> None:
    """Make a structure periodic in all directions or in none, in place; positions stay.

    One that is periodic in some directions, or has no cell vector in some, becomes periodic in all:
    along an open direction its cell vector is kept if there is vacuum, and made if it is missing.

    Args:
        atoms: the structure, in Å.
        counts: counts for the report, updated.
        forced: ``TTT``: open structures too become periodic, and cell vectors are kept as they are;
            ``FFF``: all become open; None: open structures stay open.
        cutoff: Å, that vacuum should exceed.
        advice: end of error messages: what the user can do.

    Raises:
        ValueError: no vacuum along an open direction, parallel or no cell vectors.
    """
    if forced == "FFF" and atoms.pbc.any():
        atoms.pbc = False
        counts["opened"] += 1
    is_open = not atoms.pbc.any()
    if is_open and forced != "TTT":
        return
    missing = ~atoms.cell.any(axis=1)
    if not is_open and missing.all():
        raise ValueError(_wrong(atoms, "its cell is zero", advice))
    if (atoms.pbc.all() and not missing.any()) or not np.isfinite(atoms.positions).all():
        return  # atoms_to_data refuses what is wrong with them
    made = _complete_cell(atoms, missing, cutoff + MARGIN, advice)
    narrow = np.inf
    for axis in np.flatnonzero(~atoms.pbc | missing):
        vacuum = vacuum_along(atoms.positions, made, axis)
        if vacuum < MIN_VACUUM:
            if forced == "TTT":
                continue  # the user says that it is no gap
            gap = f"{max(vacuum, 0):.1f} Å of vacuum along cell vector {axis}"
            reason = f"{gap}, at least {MIN_VACUUM:g} Å are needed"
            raise ValueError(_wrong(atoms, reason, advice))
        narrow = min(narrow, vacuum)
    _count(atoms, counts, is_open, narrow, cutoff)
    atoms.set_cell(made)
    atoms.pbc = True


def _count(atoms: Atoms, counts: Counter, is_open: bool, vacuum: float, cutoff: float) -> None:
    kind = "boxed" if is_open else "periodic_made"
    counts[kind] += 1
    if np.isfinite(vacuum):
        counts[f"{_VACUUM[kind]}_{floor(vacuum + 1e-6)}"] += 1
    if vacuum <= cutoff:
        counts["narrow_vacuum"] += 1


def _wrong(atoms: Atoms, reason: str, advice: str) -> str:
    return (
        "expected pbc in all three directions and a cell with a volume, or vacuum along the open "
        f"directions, or no pbc, got pbc {atoms.pbc.tolist()} and cell "
        f"{atoms.cell.array.tolist()}, and {reason}: {advice}"
    )


def _complete_cell(atoms: Atoms, missing: np.ndarray, vacuum: float, advice: str) -> np.ndarray:
    """Make the missing cell vectors, at right angles to the others and each other: (3, 3), Å."""
    cell = atoms.cell.array.copy()
    given = cell[~missing]
    basis = list(np.linalg.svd(given, full_matrices=False)[2]) if len(given) else []
    for axis in np.flatnonzero(missing):
        own_first = np.roll(np.eye(3), -axis, axis=0)
        rests = (unit - sum((b * (b @ unit) for b in basis), np.zeros(3)) for unit in own_first)
        direction = next(rest for rest in rests if np.linalg.norm(rest) > 0.1)
        direction /= np.linalg.norm(direction)
        basis.append(direction)
        extent = np.ptp(atoms.positions @ direction)
        cell[axis] = direction * STEP * ceil((extent + vacuum) / STEP)
    if abs(np.linalg.det(cell)) <= _PARALLEL * np.linalg.norm(cell, axis=1).prod():
        raise ValueError(_wrong(atoms, "its cell vectors are parallel", advice))
    return cell


def vacuum_along(positions: np.ndarray, cell: np.ndarray, axis: int) -> float:
    """Measure the distance between a structure and its image along a cell vector, in Å.

    Args:
        positions, cell: (n_atoms, 3) and (3, 3), Å.
        axis: 0, 1 or 2, the cell vector.
    """
    normal = np.cross(*np.delete(cell, axis, axis=0))
    normal /= np.linalg.norm(normal)
    return float(abs(cell[axis] @ normal) - np.ptp(positions @ normal))


def describe_vacuum(counts: Counter, kind: str) -> str:
    """Say how much vacuum structures have that were counted as ``periodic_made`` or ``boxed``."""
    if kind not in _VACUUM:
        return ""
    prefix = f"{_VACUUM[kind]}_"
    found = sorted(int(name.removeprefix(prefix)) for name in counts if name.startswith(prefix))
    if not found:
        return "with their own cells"
    if found[0] == found[-1]:
        return f"with {found[0]} Å of vacuum"
    return f"with {found[0]} to {found[-1]} Å of vacuum"
