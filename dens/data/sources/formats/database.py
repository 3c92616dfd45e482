"""Read ASE's databases: .db, .aselmdb and .json, also in the layout of SchNetPack."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ase.db
from ase import Atoms
from ase.db.core import Database
from ase.db.row import AtomsRow

_HEAD = 2_000  # bytes that tell a database in JSON
_ENERGY_UNITS = {"ev": "eV-A", "mev": "meV", "kcal/mol": "kcal/mol", "kj/mol": "kJ/mol"}  # with Å


def is_json_database(path: Path) -> bool:
    """Tell by its first bytes whether a .json is a database as ASE writes it."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    return (
        re.match(rb'\s*\{\s*"\d+":\s*\{\s*"(calculator|cell|constraints|ctime)"', head) is not None
    )


@contextmanager
def connect(path: str) -> Iterator[Database]:
    """Open a database for reading.

    Raises:
        ValueError: a .db that is none.
    """
    options = {"readonly": True} if path.endswith(".aselmdb") else {}
    if path.endswith(".db"):
        with open(path, "rb") as file:  # ASE would make a database of an empty file
            if file.read(6) != b"SQLite":
                raise ValueError("expected an SQLite database as ASE writes it")
    with ase.db.connect(path, **options) as database:
        yield database


def make_structure(row: AtomsRow) -> Atoms:
    """Make the structure of a row; its info has the row's data and its key-value pairs."""
    atoms = row.toatoms()
    atoms.info.update(row.data)
    atoms.info.update(row.key_value_pairs)
    return atoms


def has_stress(row: AtomsRow, key: str | None) -> bool:
    """Tell whether a row has a stress, under `key` if one is given."""
    if key is None:
        return row.get("stress") is not None
    return key in row.key_value_pairs or key in row.data


def read_database_units(path: str) -> str | None:
    """Read the units that SchNetPack keeps in the metadata; None if there are none.

    Returns:
        A key of `dens.data.units.UNITS`, or the unit as it stands if it is none of them.
    """
    with connect(path) as database:
        metadata: dict[str, Any] = database.metadata or {}
    units = metadata.get("_property_unit_dict") or {}
    length = metadata.get("_distance_unit")
    named = [unit for key, unit in units.items() if "energy" in key.lower() and unit]
    if not named or not length:
        return None
    energy = str(named[0]).lower()
    if str(length).lower() in ("ang", "angstrom", "å", "a") and energy in _ENERGY_UNITS:
        return _ENERGY_UNITS[energy]
    if str(length).lower() == "bohr" and energy in ("ha", "hartree"):
        return "Hartree-Bohr"
    return f"{named[0]}, {length}"
