"""Units of labelled structures, and a check for wrong ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import units


@dataclass(frozen=True)
class Units:
    """Units of a source, in eV per unit of energy and Å per unit of length."""

    name: str
    energy: float
    length: float

    @property
    def force(self) -> float:
        """eV/Å per unit of force."""
        return self.energy / self.length


UNITS = {
    unit.name: unit
    for unit in (
        Units("eV-A", 1.0, 1.0),
        Units("kcal/mol", units.kcal / units.mol, 1.0),
        Units("meV", 1e-3, 1.0),
        Units("Hartree-Bohr", units.Hartree, units.Bohr),
    )
}


def parse_units(name: str) -> Units:
    """Look up units: eV-A (or eV-Å), kcal/mol, meV (the last two with Å), Hartree-Bohr.

    Raises:
        ValueError: unknown name.
    """
    for unit in UNITS.values():
        if unit.name.lower() == name.replace("Å", "A").lower():
            return unit
    raise ValueError(f"units must be one of {', '.join(UNITS)}, got {name!r}")


def all_electron_energy(numbers: np.ndarray) -> float:
    r"""Estimate the total energy of an all-electron calculation, in eV, within some percent.

    .. math:: E \approx -\sum_i (0.7687 Z_i^{7/3} - Z_i^2 / 2 + 0.2699 Z_i^{5/3}) E_h

    the large-Z expansion for atoms (Thomas-Fermi, Scott, Schwinger: doi:10.1103/PhysRevA.22.1827).
    Binding energies are negligible beside it.

    Args:
        numbers: (n_atoms,) atomic numbers.
    """
    z = np.asarray(numbers, dtype=float)
    terms = 0.7687 * z ** (7 / 3) - 0.5 * z**2 + 0.2699 * z ** (5 / 3)
    return -float(terms.sum()) * units.Hartree


def suspected_units(numbers: np.ndarray, energy: float, assumed: str = "eV-A") -> str | None:
    """Name the units that a total energy is in, if they are not the assumed ones.

    Only all-electron energies tell their unit, because their size is known. Energies of valence
    electrons, or relative to references, fit no unit.

    Args:
        numbers: (n_atoms,) atomic numbers.
        energy: as it stands in the source.
        assumed: key of `UNITS`.

    Returns:
        A key of `UNITS`; None if the energy fits `assumed`, or no unit.
    """
    ratio = energy / all_electron_energy(numbers)
    fitting = (unit.name for unit in UNITS.values() if 0.9 < ratio * unit.energy < 1.1)
    found = next(fitting, assumed)
    return None if found == assumed else found
