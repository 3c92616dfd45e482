"""Units of labelled structures: look them up by name, and find signs of wrong ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import units

# name: eV per unit, and other ways to write it, in lower case
ENERGIES = {
    "eV": (1.0, "ev"),
    "meV": (1e-3, "mev"),
    "Hartree": (units.Hartree, "hartree hartrees ha eh au a.u."),
    "Rydberg": (units.Rydberg, "rydberg rydbergs ry"),
    "kcal/mol": (units.kcal / units.mol, "kcal/mol kcal_mol kcalmol kcal_per_mol"),
    "kJ/mol": (units.kJ / units.mol, "kj/mol kj_mol kjmol kj_per_mol"),
}
# name: Å per unit, and other ways to write it, in lower case
LENGTHS = {
    "A": (1.0, "a å ang angs angst angstrom angstroms ångström"),
    "nm": (units.nm, "nm nanometer nanometre"),
    "Bohr": (units.Bohr, "bohr bohrs a0 au a.u."),
}
# names that settle everything: ASE's, LAMMPS's and the atomic units
SYSTEMS = {
    **dict.fromkeys(("ase", "metal"), ("eV", "A")),
    "real": ("kcal/mol", "A"),
    **dict.fromkeys(("au", "a.u.", "atomic", "electron"), ("Hartree", "Bohr")),
}
# keys by which files name units, in lower case, with _ for - and without the last s
NAMING_KEYS = {
    "energy": "energy_unit energie_unit unit_energy unit_of_energy energyunit e_unit",
    "force": "force_unit forces_unit unit_force unit_of_force forceunit f_unit",
    "length": "length_unit position_unit pos_unit coord_unit coordinate_unit distance_unit "
    "lattice_unit cell_unit unit_length unit_of_length lengthunit r_unit",
    "all": "unit",
}
_QUANTITY = {key: name for name, keys in NAMING_KEYS.items() for key in keys.split()}
# eV per atom; energies relative to references are smaller
CONCLUSIVE = 5.0


@dataclass(frozen=True)
class Units:
    """Units of a source, in eV per unit of energy, Å per unit of length, eV/Å per unit of force.

    The unit of force is that of energy per length unless it is given.
    """

    name: str
    energy: float
    length: float
    own_force: float | None = None

    @property
    def force(self) -> float:
        """eV/Å per unit of force."""
        return self.energy / self.length if self.own_force is None else self.own_force

    def equals(self, other: Units) -> bool:
        """Compare the values, whatever the names."""
        return all(
            np.isclose(getattr(self, name), getattr(other, name), rtol=1e-6)
            for name in ("energy", "length", "force")
        )


UNITS = {
    unit.name: unit
    for unit in (
        Units("eV-A", 1.0, 1.0),
        Units("kcal/mol", units.kcal / units.mol, 1.0),
        Units("meV", 1e-3, 1.0),
        Units("Hartree-Bohr", units.Hartree, units.Bohr),
        Units("kJ/mol", units.kJ / units.mol, 1.0),
        Units("Rydberg-Bohr", units.Rydberg, units.Bohr),
    )
}


def parse_units(name: str) -> Units:
    """Look up units: eV-A (or eV-Å), kcal/mol, kJ/mol, meV (the last three with Å), Hartree-Bohr,
    Rydberg-Bohr.

    Raises:
        ValueError: unknown name.
    """
    for unit in UNITS.values():
        if unit.name.lower() == name.replace("Å", "A").lower():
            return unit
    raise ValueError(
        f"units must be one of {', '.join(UNITS)}, got {name!r}: for others give --energy-unit, "
        "--length-unit, --force-unit"
    )


def combine_units(
    energy: str | None = None, length: str | None = None, force: str | None = None
) -> Units:
    """Make units from those of energy, length and force; by default eV, Å and energy per length.

    Args:
        energy: eV, meV, Hartree, Rydberg, kcal/mol or kJ/mol.
        length: Å, nm or Bohr.
        force: energy and length with a slash between them: Hartree/Bohr.

    Raises:
        ValueError: an unknown name.
    """
    energy = _find(energy or "eV", ENERGIES, "energy-unit")
    length = _find(length or "A", LENGTHS, "length-unit")
    made = Units(f"{energy}-{length}", ENERGIES[energy][0], LENGTHS[length][0])
    if force is not None:
        per_energy, per_length = _parse_force(force)
        value = ENERGIES[per_energy][0] / LENGTHS[per_length][0]
        name = f"{made.name}, forces in {per_energy}/{per_length}"
        with_force = Units(name, made.energy, made.length, value)
        made = made if made.equals(with_force) else with_force
    return next((unit for unit in UNITS.values() if unit.equals(made)), made)


def _lookup(text: str, table: Mapping[str, tuple[float, str]]) -> str | None:
    return next((name for name, (_, words) in table.items() if text in words.split()), None)


def _words(text: str) -> list[str]:
    """Split a unit into words in lower case: ``kcal mol^-1 Å^-1`` and ``kcal/(mol*Å)`` alike."""
    text = re.sub(r"\^?-1\b|\*\*-1\b", " ", text.replace("Å", "Å").lower())
    return re.findall(r"[^\s/()*·,;^-]+", text)


def _find(text: str, table: Mapping[str, tuple[float, str]], option: str) -> str:
    found = _lookup("/".join(_words(text)), table)
    if found is None:
        raise ValueError(f"{option} must be one of {', '.join(table)}, got {text!r}")
    return found


def _parse_force(text: str) -> tuple[str, str]:
    words = _words(text)
    if len(words) == 1 and words[0] in SYSTEMS:
        return SYSTEMS[words[0]]
    energy, length = _lookup("/".join(words[:-1]), ENERGIES), _lookup(words[-1], LENGTHS)
    if energy is None or length is None:
        raise ValueError(f"force-unit must be an energy per length like eV/Å, got {text!r}")
    return energy, length


def read_named_units(info: Mapping[str, Any], *, ignore_unknown: bool = False) -> dict[str, str]:
    """Find the units that a frame names among its keys: ``energy-unit=Hartree``, ``units=real``.

    Args:
        info: as in ``atoms.info``.
        ignore_unknown: pass over units that are not known, since the user gave some.

    Returns:
        The names of ``energy``, ``length`` and ``force``, where they are known.

    Raises:
        ValueError: a unit that is not known, or two for the same quantity.
    """
    named: dict[str, str] = {}
    for key, value in info.items():
        quantity = _QUANTITY.get(re.sub(r"[-\s]", "_", str(key).lower()).removesuffix("s"))
        if quantity is None or not isinstance(value, str):
            continue
        try:
            found = _parse_named(quantity, value)
        except ValueError:
            if ignore_unknown:
                continue
            known = ", ".join((*ENERGIES, *LENGTHS))
            raise ValueError(
                f"its {key} is {value!r}, which is not known (of {known}): give --energy-unit, "
                "--length-unit, --force-unit"
            ) from None
        for name, unit in found.items():
            if named.setdefault(name, unit) != unit:
                raise ValueError(f"it names two units of {name}: {named[name]} and {unit}")
    return named


def _parse_named(quantity: str, text: str) -> dict[str, str]:
    if quantity == "force":
        return {"force": "/".join(_parse_force(text))}
    if quantity in ("energy", "length"):
        table = ENERGIES if quantity == "energy" else LENGTHS
        return {quantity: _find(text, table, quantity)}
    words = _words(text)
    if len(words) == 1 and words[0] in SYSTEMS:
        return dict(zip(("energy", "length"), SYSTEMS[words[0]], strict=True))
    if (energy := _lookup("/".join(words), ENERGIES)) is not None:
        return {"energy": energy}
    energy, length = _parse_force("/".join(words) or "?")
    return {"energy": energy, "length": length}


def check_named(named: Mapping[str, str], assumed: Units) -> None:
    """Compare the units that a frame names with those that are assumed.

    Raises:
        ValueError: they differ.
    """
    for quantity, name in named.items():
        value = getattr(combine_units(**{quantity: name}), quantity)
        if not np.isclose(value, getattr(assumed, quantity), rtol=1e-6):
            raise ValueError(
                f"it names {name} as its unit of {quantity}, but the units are {assumed.name}"
            )


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


def is_conclusive(numbers: np.ndarray, energy: float) -> bool:
    """Tell whether an energy (n_atoms,), eV, that fits other units is too large for a coincidence.

    Two H at -1.1 eV may be an energy relative to references as well as a total in Hartree; the
    energy of water, -76, is 25 eV per atom, which no referenced energy has.
    """
    return abs(energy) > CONCLUSIVE * len(numbers)
