"""Read ``.npz`` files: one molecule in the layouts of MD17, sGDML and revised MD17, or many."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from dens.data.sources.formats.molecules import LAYOUT, OPTIONAL, ManyMolecules, read_molecules
from dens.data.sources.reading import LABELS, UNLABELLED, ReadOptions, is_label

# keys of positions, energies, forces, atomic numbers
_LAYOUTS = (
    ("R", "E", "F", "z"),  # original MD17, and sGDML's CCSD(T) sets
    ("coords", "energies", "forces", "nuclear_charges"),  # revised MD17
)
_UNITS = {"kcal/mol": "kcal/mol", "ev": "eV-A", "mev": "meV"}  # e_unit in lower case
_ANGSTROM = ("ang", "angstrom", "å")
_COLUMNS = "lattice"  # sGDML's key of the cell, whose vectors are columns
_CELL = re.compile(r"cells?|lattices?|lattice_vectors?|unit_?cells?|box(es)?|simulation_?box", re.I)


_SHAPE = re.compile(rf"pbc|{_CELL.pattern}", re.I)


@dataclass(frozen=True)
class MoleculeFrames:
    """Sequence of labelled frames of one molecule or crystal, in the units of the file.

    Attributes:
        numbers: (n_atoms,) atomic numbers.
        pos: (n_frames, n_atoms, 3) positions.
        energy: (n_frames,); None without labels, as the forces.
        forces: (n_frames, n_atoms, 3).
        units: key of `dens.data.units.UNITS`; None if the file names no units.
        cell: (n_frames, 3, 3), rows are vectors; None for open structures.
        pbc: (3,) bool.
        others: further arrays with one entry for each frame, by key.
    """

    path: Path
    numbers: np.ndarray
    pos: np.ndarray
    energy: np.ndarray | None
    forces: np.ndarray | None
    units: str | None
    cell: np.ndarray | None = None
    pbc: tuple[bool, bool, bool] = (False, False, False)
    others: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pos)

    def __getitem__(self, number: int) -> Atoms:
        cell = None if self.cell is None else self.cell[number]
        atoms = Atoms(self.numbers, self.pos[number], cell=cell, pbc=self.pbc)
        known = {"energy": self.energy, "forces": self.forces}
        labels = {name: value[number] for name, value in known.items() if value is not None}
        more = {key: values[number] for key, values in self.others.items()}
        if "stress" in more:
            labels["stress"] = more.pop("stress")
        atoms.calc = SinglePointCalculator(atoms, **labels) if labels else None
        atoms.info.update(more)
        return atoms


def read_npz(
    path: str | Path, options: ReadOptions | None = None
) -> MoleculeFrames | ManyMolecules:
    """Read all frames of an ``.npz``, or all structures of one with ``natoms``, ``z``, ``pos``.

    The cell is read from sGDML's ``lattice``, whose columns are the vectors, or from ``cell`` or
    the like, whose rows are the vectors: one for all frames, or one each. ``pbc`` is read too.

    Raises:
        ValueError: truncated, another layout, inconsistent shapes, or several molecules. The
            message does not name the file.
    """
    options = options or ReadOptions()
    try:
        with np.load(path) as file:
            names = file.files
            arrays = {name: file[name] for name in names if _is_wanted(name, options)}
    except Exception as error:  # damaged files make zipfile, zlib and numpy raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot be read, it may be truncated: {reason}") from error
    if set(LAYOUT).issubset(names):
        named = [key for key in (options.pairs_key, options.group_key) if key is not None]
        cell = _read_cell(arrays, arrays["natoms"].size)
        rest = {key: value for key, value in arrays.items() if not _SHAPE.fullmatch(key)}
        return read_molecules(rest, names, named, *cell, _read_units(arrays))
    keys = _find_keys(arrays, names, options)
    pos, energy, forces = (
        arrays[key].astype(np.float64) if key in arrays else None for key in keys[:3]
    )
    numbers = arrays[keys[3]].astype(np.int64)
    if numbers.ndim == 2:
        if len(numbers) == 0 or (numbers != numbers[0]).any():
            raise ValueError("expected the same atoms in every frame, got several molecules")
        numbers = numbers[0]
    energy = _check_shapes(numbers, pos, energy, forces)
    cell, pbc = _read_cell(arrays, len(pos))
    used = set(keys) - {options.key(label) for label in LABELS}
    others = {
        key: value
        for key, value in arrays.items()
        if key not in used and value.shape[:1] == pos.shape[:1] and not _SHAPE.fullmatch(key)
    }
    units = _read_units(arrays)
    return MoleculeFrames(Path(path), numbers, pos, energy, forces, units, cell, pbc, others)


def read_one_molecule(path: str | Path) -> MoleculeFrames:
    """Read all frames of an ``.npz`` of one molecule, with labels.

    Raises:
        ValueError: see `read_npz`; or a file of many molecules.
    """
    frames = read_npz(path)
    if isinstance(frames, ManyMolecules):
        raise ValueError(f"expected frames of one molecule, got {len(frames)} molecules")
    return frames


def _check_shapes(
    numbers: np.ndarray, pos: np.ndarray, energy: np.ndarray | None, forces: np.ndarray | None
) -> np.ndarray | None:
    """Check that the arrays belong together; return the energies as (n_frames,)."""
    if energy is not None and energy.ndim == 2 and energy.shape[1] == 1:
        energy = energy[:, 0]
    counted = pos if energy is None else energy
    shape = (len(counted), len(numbers), 3)
    flat = energy is None or energy.ndim == 1
    if not flat or pos.shape != shape or (forces is not None and forces.shape != shape):
        got = "none" if forces is None else forces.shape
        known = "none" if energy is None else energy.shape
        raise ValueError(
            f"expected positions and forces {shape} for its energies {known} and atoms, "
            f"got {pos.shape} and {got}"
        )
    return energy


def _is_wanted(name: str, options: ReadOptions) -> bool:
    named = {*map(options.key, LABELS), options.group_key, options.pairs_key, "e_unit", "r_unit"}
    named |= {*LAYOUT, *OPTIONAL}
    return name in named.union(*_LAYOUTS) or bool(_SHAPE.fullmatch(name)) or is_label(name)


def _find_keys(
    arrays: Mapping[str, np.ndarray], names: list[str], options: ReadOptions
) -> tuple[str, ...]:
    """Find the keys of positions, energies, forces and atomic numbers."""
    layout = _LAYOUTS[0] if "R" in arrays else _LAYOUTS[1]
    given = (None, *map(options.key, LABELS[:2]), None)
    keys = tuple(key or usual for key, usual in zip(given, layout, strict=True))
    missing = [key for key in keys if key not in arrays]
    labels = set(missing) <= {*keys[1:3]}
    if missing and (options.labels or not labels):
        hint = f"; {UNLABELLED}" if labels and not any(map(options.key, LABELS)) else ""
        raise ValueError(
            f"expected the keys R, E, F, z or coords, energies, forces, nuclear_charges, or "
            f"natoms, z, pos of many molecules, got {', '.join(names)} (no {', '.join(missing)})"
            f"{hint}"
        )
    return keys


def _read_cell(
    arrays: Mapping[str, np.ndarray], count: int
) -> tuple[np.ndarray | None, tuple[bool, bool, bool]]:
    """Read the cell, (n_frames, 3, 3), and in which directions it repeats."""
    keys = [key for key in arrays if _CELL.fullmatch(key)]
    if len(keys) > 1:
        raise ValueError(f"expected one cell, got the keys {', '.join(keys)}")
    cell = arrays[keys[0]].astype(np.float64) if keys else None
    if cell is not None:
        shape = cell.shape
        if shape in ((3,), (count, 3)) and shape != (3, 3):  # lengths
            cell = cell[..., None] * np.eye(3)
        elif shape in ((9,), (count, 9)):
            cell = cell.reshape(*shape[:-1], 3, 3)
        if cell.shape not in ((3, 3), (1, 3, 3), (count, 3, 3)):
            raise ValueError(
                f"{keys[0]} must be a cell, (3, 3), or one for each of {count} frames, got {shape}"
            )
        if keys[0] == _COLUMNS:
            cell = cell.swapaxes(-1, -2)
        cell = np.broadcast_to(cell, (count, 3, 3))
    pbc = _read_pbc(arrays.get("pbc"), cell is not None and bool(cell.any()))
    if any(pbc) and cell is None:
        raise ValueError(f"its pbc is {list(pbc)}, but it has no cell")
    return (cell if any(pbc) else None), pbc


def _read_pbc(value: np.ndarray | None, has_cell: bool) -> tuple[bool, bool, bool]:
    if value is None:
        return (has_cell,) * 3
    rows = np.unique(
        np.asarray(value, dtype=bool).reshape(-1, 3 if value.size % 3 == 0 else 1), axis=0
    )
    if len(rows) != 1:
        raise ValueError(f"pbc must be equal for all frames, got {rows.tolist()}")
    return tuple(np.broadcast_to(rows[0], 3).tolist())


def _read_units(arrays: Mapping[str, np.ndarray]) -> str | None:
    energy, length = (  # bytes or text
        arrays[key].astype(str).item() if key in arrays else None for key in ("e_unit", "r_unit")
    )
    if length is not None and length.lower() not in _ANGSTROM:
        raise ValueError(f"expected positions in Å, got r_unit {length!r}")
    if energy is not None and energy.lower() not in _UNITS:
        raise ValueError(f"e_unit must be one of {', '.join(_UNITS)}, got {energy!r}")
    return energy and _UNITS[energy.lower()]
