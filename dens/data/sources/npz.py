"""Read ``.npz`` files of one molecule in the layouts of MD17, sGDML and revised MD17."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

# keys of positions, energies, forces, atomic numbers
_LAYOUTS = (
    ("R", "E", "F", "z"),  # original MD17, and sGDML's CCSD(T) sets
    ("coords", "energies", "forces", "nuclear_charges"),  # revised MD17
)
_UNITS = {"kcal/mol": "kcal/mol", "ev": "eV-A", "mev": "meV"}  # e_unit in lower case
_ANGSTROM = ("ang", "angstrom", "å")


@dataclass(frozen=True)
class MoleculeFrames:
    """Sequence of labelled frames of one molecule, in the units of the file.

    Attributes:
        numbers: (n_atoms,) atomic numbers.
        pos: (n_frames, n_atoms, 3) positions.
        energy: (n_frames,).
        forces: (n_frames, n_atoms, 3).
        units: key of `dens.data.units.UNITS`; None if the file names no units.
    """

    path: Path
    numbers: np.ndarray
    pos: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    units: str | None

    def __len__(self) -> int:
        return len(self.energy)

    def __getitem__(self, number: int) -> Atoms:
        atoms = Atoms(self.numbers, self.pos[number])
        labels = {"energy": self.energy[number], "forces": self.forces[number]}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        return atoms


def read_npz(path: str | Path) -> MoleculeFrames:
    """Read all frames of an ``.npz``.

    Raises:
        ValueError: truncated, another layout, inconsistent shapes, or several molecules. The
            message does not name the file.
    """
    wanted = {"e_unit", "r_unit"}.union(*_LAYOUTS)
    try:
        with np.load(path) as file:
            names = file.files
            arrays = {name: file[name] for name in names if name in wanted}
    except Exception as error:  # damaged files make zipfile, zlib and numpy raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot be read, it may be truncated: {reason}") from error
    keys = _LAYOUTS[0] if "R" in arrays else _LAYOUTS[1]
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise ValueError(
            f"expected the keys R, E, F, z or coords, energies, forces, nuclear_charges, "
            f"got {', '.join(names)} (no {', '.join(missing)})"
        )
    pos, energy, forces = (arrays[key].astype(np.float64) for key in keys[:3])
    numbers = arrays[keys[3]].astype(np.int64)
    if numbers.ndim == 2:
        if len(numbers) == 0 or (numbers != numbers[0]).any():
            raise ValueError("expected the same atoms in every frame, got several molecules")
        numbers = numbers[0]
    if energy.ndim == 2 and energy.shape[1] == 1:
        energy = energy[:, 0]
    shape = (len(energy), len(numbers), 3)
    if energy.ndim != 1 or pos.shape != shape or forces.shape != shape:
        raise ValueError(
            f"expected positions and forces {shape} for its energies {energy.shape} and atoms, "
            f"got {pos.shape} and {forces.shape}"
        )
    return MoleculeFrames(Path(path), numbers, pos, energy, forces, _read_units(arrays))


def _read_units(arrays: dict[str, np.ndarray]) -> str | None:
    energy, length = (  # bytes or text
        arrays[key].astype(str).item() if key in arrays else None for key in ("e_unit", "r_unit")
    )
    if length is not None and length.lower() not in _ANGSTROM:
        raise ValueError(f"expected positions in Å, got r_unit {length!r}")
    if energy is not None and energy.lower() not in _UNITS:
        raise ValueError(f"e_unit must be one of {', '.join(_UNITS)}, got {energy!r}")
    return energy and _UNITS[energy.lower()]
