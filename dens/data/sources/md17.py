"""The molecules of MD17 and the files they come in: download, find, read, check."""

from __future__ import annotations

import hashlib
import re
import shutil
import urllib.request
from collections import Counter
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import ase.io
import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula

from dens.data.units import UNITS, Units, all_electron_energy, parse_units

# the official site, arXiv:1611.04678
URL = "http://www.quantum-machine.org/gdml/data/npz/{name}.npz"

# units of sGDML's files, in lower case
_UNIT_NAMES = {"kcal/mol": "kcal/mol", "ev": "eV-A", "mev": "meV"}
_ANGSTROM = ("ang", "angstrom", "å")

# the keys of positions, energies, forces, atomic numbers
_LAYOUTS = (
    ("R", "E", "F", "z"),  # original MD17 and sGDML's CCSD(T) sets
    ("coords", "energies", "forces", "nuclear_charges"),  # revised MD17
)

_TOLERANCE = 0.1  # of a total energy against the estimate from its atoms


@dataclass(frozen=True)
class Molecule:
    """One of the eight molecules: its name, formula, and frames in the original MD17."""

    name: str
    formula: str
    frames: int
    file: str  # stem of the official file
    aliases: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return URL.format(name=self.file)

    @property
    def composition(self) -> dict[str, int]:
        return Formula(self.formula).count()


# https://www.quantum-machine.org/gdml; the same numbers of frames are in PyTorch Geometric's table
MOLECULES = (
    Molecule("aspirin", "C9H8O4", 211_762, "md17_aspirin"),
    Molecule("benzene", "C6H6", 627_983, "md17_benzene2017", ("benzene2017", "benzene_old")),
    Molecule("ethanol", "C2H6O", 555_092, "md17_ethanol"),
    Molecule("malonaldehyde", "C3H4O2", 993_237, "md17_malonaldehyde"),
    Molecule("naphthalene", "C10H8", 326_250, "md17_naphthalene"),
    Molecule("salicylic", "C7H6O3", 320_231, "md17_salicylic", ("salicylic_acid",)),
    Molecule("toluene", "C7H8", 442_790, "md17_toluene"),
    Molecule("uracil", "C4H4N2O2", 133_770, "md17_uracil"),
)


def find_molecule(name: str) -> Molecule:
    """The molecule of that name or alias, in any case, with spaces or hyphens for underscores.

    Raises:
        ValueError: no such molecule; lists them.
    """
    wanted = re.sub(r"[\s-]+", "_", name.strip().lower())
    for molecule in MOLECULES:
        if wanted in (molecule.name, *molecule.aliases):
            return molecule
    names = ", ".join(" = ".join((m.name, *m.aliases)) for m in MOLECULES)
    raise ValueError(f"molecule must be one of {names}, got {name!r}")


@dataclass(frozen=True)
class Frames:
    """Labelled frames of one molecule from one file."""

    path: Path
    numbers: np.ndarray  # (n_atoms,) atomic numbers
    pos: np.ndarray  # (n_frames, n_atoms, 3), Å
    energy: np.ndarray  # (n_frames,), eV
    forces: np.ndarray  # (n_frames, n_atoms, 3), eV/Å
    units: Units  # in the file

    def __len__(self) -> int:
        return len(self.energy)


def find_files(source: Path, molecule: Molecule) -> tuple[Path, Path | None]:
    """The file with all frames, or the train and the test file of a set that has both.

    Args:
        source: a file; or a folder with sGDML's ``*-train.npz`` and ``*-test.npz`` of the molecule,
            or with one other ``.npz`` of it, at any depth (as unpacked from rMD17's archive).

    Raises:
        ValueError: there is nothing, or more than one choice.
    """
    if source.is_file():
        return source, None
    if not source.is_dir():
        raise ValueError(f"{source}: expected a file or folder with MD17 data, there is none")
    files = [f for f in sorted(source.rglob("*.npz")) if molecule.name in f.stem]
    train = [f for f in files if f.stem.endswith("-train")]
    test = [f for f in files if f.stem.endswith("-test")]
    whole = [f for f in files if f not in train + test]
    if len(train) == len(test) == 1 and not whole:
        return train[0], test[0]
    if len(whole) == 1 and not train + test:
        return whole[0], None
    found = ", ".join(str(f.relative_to(source)) for f in files) or "none"
    raise ValueError(
        f"{source}: expected one .npz file of {molecule.name}, or its -train and -test files, "
        f"got {found}: name the file"
    )


def read_frames(path: Path, molecule: Molecule, units: str | None = None) -> Frames:
    """Read and check a file.

    Args:
        path: ``.npz`` in the layout of MD17 or rMD17, else extended XYZ.
        molecule: what it must hold.
        units: a key of `dens.data.units.UNITS`; None for what the file says, or for kcal/mol in an
            ``.npz`` that says nothing, since both layouts are published in it.

    Raises:
        ValueError: unreadable, incomplete, not finite, another molecule, or units that are unknown
            or contradict the file or the size of the energies. One line that names the file.
    """
    given = None if units is None else parse_units(units)
    read = read_npz if path.suffix == ".npz" else _read_xyz
    try:
        numbers, pos, energy, forces, named = read(path)
        unit = _choose_units(given, named, path.suffix == ".npz")
        _check_arrays(numbers, pos, energy, forces)
        _check_molecule(numbers, molecule)
        _check_size(numbers, energy, unit)
    except _BadFile as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # damaged files make zipfile, zlib, numpy and ASE raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read, it may be truncated: {reason}") from error
    return Frames(path, numbers, pos * unit.length, energy * unit.energy, forces * unit.force, unit)


class _BadFile(ValueError):
    """What is wrong with a file, without its name."""


def read_npz(path: Path):
    """Atomic numbers (n_atoms,), positions and energies and forces of the frames as they stand in
    an ``.npz`` of MD17's or rMD17's layout, and the units it names, or None.

    Raises:
        ValueError: another layout, or several molecules; does not name the file.
    """
    with np.load(path) as file:
        for keys in _LAYOUTS:
            if keys[0] in file:
                break
        missing = [key for key in keys if key not in file]
        if missing:
            raise _BadFile(
                f"expected the keys R, E, F, z or coords, energies, forces, nuclear_charges, "
                f"got {', '.join(file.files)} (no {', '.join(missing)})"
            )
        pos, energy, forces, numbers = (np.asarray(file[key]) for key in keys)
        unit = _text(file["e_unit"]) if "e_unit" in file else None
        length = _text(file["r_unit"]) if "r_unit" in file else "Ang"
    if length.lower() not in _ANGSTROM:
        raise _BadFile(f"expected positions in Å, got r_unit {length!r}")
    if unit is not None and unit.lower() not in _UNIT_NAMES:
        raise _BadFile(f"e_unit must be one of {', '.join(_UNIT_NAMES)}, got {unit!r}")
    if numbers.ndim == 2:
        if len(numbers) == 0 or (numbers != numbers[0]).any():
            raise _BadFile("expected the same atoms in every frame, got several molecules")
        numbers = numbers[0]
    if energy.ndim == 2 and energy.shape[1] == 1:
        energy = energy[:, 0]
    named = None if unit is None else _UNIT_NAMES[unit.lower()]
    as_float = (values.astype(np.float64) for values in (pos, energy, forces))
    return numbers.astype(np.int64), *as_float, named


def _text(value: np.ndarray) -> str:
    item = value.item()
    return item.decode() if isinstance(item, bytes) else str(item)


def _read_xyz(path: Path):
    frames = []
    for index, atoms in enumerate(ase.io.iread(path, format="extxyz")):
        results = atoms.calc.results if atoms.calc is not None else {}
        missing = [name for name in ("energy", "forces") if name not in results]
        if missing:
            raise _BadFile(f"frame {index} has no {' and no '.join(missing)}")
        if index and not np.array_equal(atoms.numbers, frames[0][0]):
            raise _BadFile(
                f"expected the same atoms in every frame, got {frames[0][3]} in frame 0 and "
                f"{atoms.get_chemical_formula()} in frame {index}, or another order of atoms"
            )
        entry = (atoms.numbers, atoms.positions, results["energy"], atoms.get_chemical_formula())
        frames.append((*entry, results["forces"]))
    if not frames:
        raise _BadFile("expected extended XYZ, got no frame")
    numbers, pos, energy, _, forces = zip(*frames, strict=True)
    return numbers[0], np.array(pos), np.array(energy, dtype=np.float64), np.array(forces), None


def _choose_units(given: Units | None, named: str | None, is_npz: bool) -> Units:
    """The units from the option and from the file, of which either may say nothing."""
    if given is None and named is None and not is_npz:
        raise _BadFile(f"does not name its units: give --units, one of {', '.join(UNITS)}")
    if given is None:
        return UNITS[named or "kcal/mol"]
    if named not in (None, given.name):
        raise _BadFile(f"its own e_unit says {named}, got --units {given.name}")
    return given


def _check_arrays(numbers, pos, energy, forces) -> None:
    shape = (len(energy), len(numbers), 3)
    if energy.ndim != 1 or pos.shape != shape or forces.shape != shape or len(energy) == 0:
        raise _BadFile(
            "expected (n_frames, n_atoms, 3) positions and forces, (n_frames,) energies and "
            f"(n_atoms,) atomic numbers, got {pos.shape}, {forces.shape}, {energy.shape} and "
            f"{numbers.shape}"
        )
    for name, values in (("positions", pos), ("energies", energy), ("forces", forces)):
        good = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not good.all():
            raise _BadFile(f"{name} must be finite, got NaN or infinity in frame {good.argmin()}")


def _check_molecule(numbers: np.ndarray, molecule: Molecule) -> None:
    known = (numbers > 0) & (numbers < len(chemical_symbols))
    if not known.all():
        raise _BadFile(f"expected atomic numbers, got {numbers[~known][0]}")
    found = Counter(chemical_symbols[number] for number in numbers)
    if found != molecule.composition:
        formula = Formula.from_dict(found).format("hill")
        raise _BadFile(f"expected {molecule.name}, {molecule.formula}, got {formula}")


def _check_size(numbers: np.ndarray, energy: np.ndarray, unit: Units) -> None:
    """Refuse total energies that fit the molecule in other units only. Shifted ones fit none."""
    expected = all_electron_energy(numbers)
    deviation = {u.name: abs(energy.mean() * u.energy / expected - 1) for u in UNITS.values()}
    fitting = [name for name, value in deviation.items() if value < _TOLERANCE]
    if fitting and unit.name not in fitting:
        raise _BadFile(
            f"its mean energy, {energy.mean():.0f}, fits the molecule in {fitting[0]}, not in "
            f"{unit.name}: give --units {fitting[0]}"
        )


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal."""
    checksum = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def download(molecule: Molecule, path: Path) -> None:
    """Fetch the original MD17 set of a molecule to ``path``, which appears once it is complete.

    Complete means readable, with the composition and the number of frames that are known for it.
    The site publishes no checksum of its files.

    Raises:
        ValueError: the site cannot be reached, or sends something else.
    """
    url = molecule.url
    partial = path.with_name(f".{path.name}.partial.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as response, open(partial, "wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
        try:
            count = len(read_frames(partial, molecule))
        except ValueError as error:
            raise ValueError(str(error).replace(str(partial), url)) from None
        if count != molecule.frames:
            raise ValueError(f"{url}: expected {molecule.frames} frames, got {count}")
        partial.rename(path)
    except (OSError, HTTPException) as error:
        raise ValueError(f"{url}: cannot be downloaded: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
