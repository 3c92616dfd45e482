"""Refuse structures for which a model has no answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from dens.graphs.images import MIN_DISTANCE, Images


def check_atoms(
    atoms: Atoms, n_numbers: int, elements: Sequence[int] | None, *, periodic: bool = True
) -> None:
    """Refuse a structure for which a model has no answer.

    Args:
        atoms: the structure.
        n_numbers: the model's ``max_num_elements``: atomic numbers must be below it.
        elements: atomic numbers in the model's training data; None if they are not known.
        periodic: whether the model reads the cell.

    Raises:
        ValueError: names the first atom, by index and element.
    """
    if len(atoms) == 0:
        raise ValueError("expected a structure with atoms, got none")
    for i, number in enumerate(atoms.numbers):
        if number == 0:
            raise ValueError(f"{_name(atoms, i)} must be an element, got a dummy (Z = 0)")
        if number >= n_numbers:
            raise ValueError(
                f"{_name(atoms, i)} must have an atomic number below {n_numbers}, the model's "
                f"max_num_elements, got {number}"
            )
        if elements is not None and number not in elements:
            raise ValueError(
                f"{_name(atoms, i)} must be of an element in the training data of the model, "
                f"{', '.join(chemical_symbols[z] for z in elements)}"
            )
    finite = np.isfinite(atoms.positions).all(axis=1)
    if not finite.all():
        i = int(finite.argmin())
        raise ValueError(
            f"{_name(atoms, i)} must be at a finite position, got {atoms.positions[i].tolist()} Å"
        )
    _check_distances(atoms, atoms.pbc if periodic else np.zeros(3, dtype=bool))


def _check_distances(atoms: Atoms, pbc: np.ndarray) -> None:
    pos, cell = atoms.positions, np.array(atoms.cell)
    if pbc.any() and not np.isfinite(cell).all():
        raise ValueError(f"the cell must be finite, got {cell.tolist()} Å")
    images = Images(pos, cell, pbc, MIN_DISTANCE)  # refuses a periodic cell without volume
    pairs = images.all_pairs(np.arange(len(pos)))
    vectors = pos[pairs.source] + pairs.offsets @ images.lattice - pos[pairs.target]
    distances = np.linalg.norm(vectors, axis=1)
    itself = (pairs.source == pairs.target) & ~pairs.offsets.any(axis=1)
    for n in np.flatnonzero((distances < MIN_DISTANCE) & ~itself)[:1]:
        first, second = sorted((int(pairs.source[n]), int(pairs.target[n])))
        raise ValueError(
            f"{_name(atoms, first)} and {_name(atoms, second)} must be {MIN_DISTANCE} Å apart or "
            f"more, got {distances[n]:.2g} Å: there is no direction between them"
        )


def _name(atoms: Atoms, i: int) -> str:
    return f"atom {i} ({atoms.symbols[i]})"
