"""Starts of pairs: the positions that an equilibrium structure was relaxed from.

The start of a structure travels with it, as an array under `START`.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms

START = "start of the pair"  # in ``atoms.arrays``
_SAME_CELL = 1e-3  # in the units of the file


def add_start(atoms: Atoms, start: Atoms | None) -> None:
    """Give a structure its start; NaN for None.

    Raises:
        ValueError: another number of atoms, other elements in that order, or another cell.
    """
    if start is None:
        atoms.arrays[START] = np.full((len(atoms), 3), np.nan)
        return
    if not np.array_equal(atoms.numbers, start.numbers):
        raise ValueError(
            f"expected the same elements in the same order in its start, got {_formula(start)} "
            f"for {_formula(atoms)}"
        )
    if atoms.pbc.any() and np.abs(atoms.cell.array - start.cell.array).max() > _SAME_CELL:
        raise ValueError(
            f"expected the same cell in its start, got {start.cell.array.round(3).tolist()} for "
            f"{atoms.cell.array.round(3).tolist()}"
        )
    if not np.isfinite(start.positions).all():
        raise ValueError("the positions of its start must be finite, got NaN or infinity")
    atoms.arrays[START] = start.positions


def choose_start(atoms: Atoms, key: str | None) -> None:
    """Take the start from the array that a structure has under a key; NaN anywhere: it has none.

    Raises:
        ValueError: no such array, or of another shape.
    """
    if key is None:
        return
    value = atoms.arrays.get(key, atoms.info.get(key))
    if value is None:
        known = ", ".join(map(str, (*atoms.arrays, *atoms.info)))
        raise ValueError(f"expected the array {key!r} (--pairs), got only {known}")
    if np.shape(value) != (len(atoms), 3) or np.asarray(value).dtype.kind not in "fiu":
        raise ValueError(
            f"{key} (--pairs) must be positions, ({len(atoms)}, 3), got shape {np.shape(value)}"
        )
    start = np.array(value, dtype=float)
    atoms.arrays[START] = start if np.isfinite(start).all() else np.full_like(start, np.nan)


def _formula(atoms: Atoms) -> str:
    return atoms.get_chemical_formula("reduce")
