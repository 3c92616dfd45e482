"""Units of labelled structures, and a guess of wrong ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import units


@dataclass(frozen=True)
class Units:
    """Units of a source: one of its energies is ``energy`` eV, one of its lengths ``length`` Å."""

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
    """The units of that name: eV-A (or eV-Å), kcal/mol, meV (the last two with Å), Hartree-Bohr.

    Raises:
        ValueError: an unknown name.
    """
    for unit in UNITS.values():
        if unit.name.lower() == name.replace("Å", "A").lower():
            return unit
    raise ValueError(f"units must be one of {', '.join(UNITS)}, got {name!r}")


def all_electron_energy(numbers: np.ndarray) -> float:
    r"""The energy in eV, within some percent, that a calculation of all electrons would give.

    .. math:: E \approx -\sum_i (0.7687 Z_i^{7/3} - Z_i^2 / 2 + 0.2699 Z_i^{5/3}) E_h

    the large-Z expansion for atoms (Thomas-Fermi, Scott, Schwinger: doi:10.1103/PhysRevA.22.1827).
    Binding energies are small against it.

    Args:
        numbers: (n_atoms,) atomic numbers.
    """
    z = np.asarray(numbers, dtype=float)
    terms = 0.7687 * z ** (7 / 3) - 0.5 * z**2 + 0.2699 * z ** (5 / 3)
    return -float(terms.sum()) * units.Hartree


def suspected_units(numbers: np.ndarray, energy: float) -> str | None:
    """The units that an energy, taken for eV, seems to have instead; None where there is no sign.

    An energy of all electrons tells its unit, since its size is known. Energies of valence
    electrons or relative to references tell nothing.

    Args:
        numbers: (n_atoms,) atomic numbers.
        energy: eV, if the units are right.
    """
    ratio = energy / all_electron_energy(numbers)
    others = (unit for unit in UNITS.values() if unit.energy != 1.0)
    return next((u.name for u in others if 0.9 < ratio * u.energy < 1.1), None)
