"""Read ``.npz`` files of many structures, whose atoms follow one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

LAYOUT = ("natoms", "z", "pos")
OPTIONAL = ("smiles", "id", "fixed", "tags")


@dataclass(frozen=True)
class ManyMolecules:
    """Sequence of structures of different sizes.

    Attributes:
        ends: (n,) number of atoms up to and with each structure.
        numbers: (n_atoms,) atomic numbers.
        pos: (n_atoms, 3) positions.
        cell: (n, 3, 3), rows are vectors; None for open structures.
        pbc: (3,) bool.
        units: key of `dens.data.units.UNITS`; None if the file names no units.
        by_atom: further arrays with one row for each atom, by key.
        by_structure: further arrays with one row for each structure, by key.
    """

    ends: np.ndarray
    numbers: np.ndarray
    pos: np.ndarray
    cell: np.ndarray | None
    pbc: tuple[bool, bool, bool]
    units: str | None
    by_atom: Mapping[str, np.ndarray]
    by_structure: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> Atoms:
        own = slice(self.ends[number - 1] if number else 0, self.ends[number])
        cell = None if self.cell is None else self.cell[number]
        atoms = Atoms(self.numbers[own], self.pos[own], cell=cell, pbc=self.pbc)
        arrays = {key: value[own] for key, value in self.by_atom.items()}
        fixed = arrays.pop("fixed", np.zeros(len(atoms), bool))
        if fixed.any():
            atoms.set_constraint(FixAtoms(mask=fixed.astype(bool)))
        for key, value in arrays.items():
            atoms.set_array(key, value)
        atoms.info.update({key: value[number] for key, value in self.by_structure.items()})
        return atoms


def read_molecules(
    arrays: Mapping[str, np.ndarray],
    names: Sequence[str],
    named: Sequence[str],
    cell: np.ndarray | None,
    pbc: tuple[bool, bool, bool],
    units: str | None,
) -> ManyMolecules:
    """Divide the arrays of a file into structures.

    Args:
        arrays: ``natoms`` (n,), ``z`` (n_atoms,), ``pos`` (n_atoms, 3), Å, and others with n or
            n_atoms rows.
        names: all keys of the file, for messages.
        named: keys of it that the user names.
        cell, pbc, units: see `ManyMolecules`.

    Raises:
        ValueError: arrays of lengths that do not match, or a named key that the file lacks.
    """
    lacking = [key for key in named if key not in arrays]
    if lacking:
        raise ValueError(f"expected the key {lacking[0]!r}, got {', '.join(names)}")
    natoms, numbers, pos = (arrays[key] for key in LAYOUT)
    if natoms.ndim != 1 or natoms.dtype.kind not in "iu" or not (natoms > 0).all():
        raise ValueError("natoms must be one positive number for each structure")
    if numbers.shape != (total := int(natoms.sum()),) or pos.shape != (total, 3):
        raise ValueError(
            f"expected z ({total},) and pos ({total}, 3), since natoms adds up to {total}, got "
            f"{numbers.shape} and {pos.shape}"
        )
    rest = {key: value for key, value in arrays.items() if key not in LAYOUT}
    for key in (*named, *OPTIONAL):
        if key in rest and rest[key].shape[:1] not in ((total,), natoms.shape):
            raise ValueError(
                f"{key} must have a row for each of {len(natoms)} structures or {total} atoms, got "
                f"shape {rest[key].shape}"
            )
    by_structure = {key: v for key, v in rest.items() if v.shape[:1] == natoms.shape}
    by_atom = {k: v for k, v in rest.items() if v.shape[:1] == (total,) and k not in by_structure}
    ends = np.cumsum(natoms, dtype=np.int64)
    numbers, pos = numbers.astype(np.int64), pos.astype(np.float64)
    return ManyMolecules(ends, numbers, pos, cell, pbc, units, by_atom, by_structure)
