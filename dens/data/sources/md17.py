"""Molecules of MD17: find, download, read and check their files."""

from __future__ import annotations

import re
import shutil
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula

from dens.data.skipped import BadFrame, map_good_frames
from dens.data.sources.ase import index_source, naming_file
from dens.data.sources.npz import MoleculeFrames, read_one_molecule
from dens.data.sources.reading import read_labels
from dens.data.sources.search import make_source
from dens.data.units import (
    UNITS,
    combine_units,
    parse_units,
    read_named_units,
    suspected_units,
)
from dens.files import atomic_file

# the official site, arXiv:1611.04678
URL = "http://www.quantum-machine.org/gdml/data/npz/{name}.npz"


@dataclass(frozen=True)
class Molecule:
    """One of the eight molecules: name, formula, and number of frames in the original MD17."""

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


# https://www.quantum-machine.org/gdml; PyTorch Geometric's table has equal numbers of frames
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
    """Look up a molecule by name or alias, in any case, with spaces or hyphens for underscores.

    Raises:
        ValueError: unknown name; lists the molecules.
    """
    wanted = re.sub(r"[\s-]+", "_", name.strip().lower())
    for molecule in MOLECULES:
        if wanted in (molecule.name, *molecule.aliases):
            return molecule
    names = ", ".join(" = ".join((m.name, *m.aliases)) for m in MOLECULES)
    raise ValueError(f"molecule must be one of {names}, got {name!r}")


def find_files(source: Path, molecule: Molecule) -> tuple[Path, Path | None]:
    """Find the file with all frames, or the train and the test file of a set that has both.

    Args:
        source: a file; or a folder with sGDML's ``*-train.npz`` and ``*-test.npz`` of the molecule,
            or with one other ``.npz`` of it, at any depth (as unpacked from rMD17's archive).

    Raises:
        ValueError: no such file, or more than one choice.
    """
    if source.is_file():
        return source, None
    if not source.is_dir():
        raise ValueError(f"{source}: expected a file or folder with MD17 data, there is none")
    names = "|".join(map(re.escape, (molecule.name, molecule.file, *molecule.aliases)))
    word = re.compile(rf"(?<![a-z])({names})(?![a-z])", re.IGNORECASE)
    files = [f for f in sorted(source.rglob("*.npz")) if word.search(f.stem)]
    by_ending = {f.stem.rpartition("-")[2]: f for f in files}
    if len(files) == 2 and by_ending.keys() == {"train", "test"}:
        return by_ending["train"], by_ending["test"]
    if len(files) == 1 and not by_ending.keys() & {"train", "test"}:
        return files[0], None
    found = ", ".join(str(f.relative_to(source)) for f in files) or "none"
    raise ValueError(
        f"{source}: expected one .npz file of {molecule.name}, or its -train and -test files, "
        f"got {found}: name the file"
    )


def read_molecule(
    path: Path, molecule: Molecule, units: str | None = None, on_bad: str = "error"
) -> tuple[MoleculeFrames, dict[int, BadFrame]]:
    """Read and check a file.

    Args:
        path: ``.npz`` in the layout of MD17 or rMD17, else extended XYZ.
        molecule: the molecule that it must hold.
        units: a key of `dens.data.units.UNITS`; None for those that the file names, or kcal/mol for
            an ``.npz`` that names none, since both layouts are published in it.
        on_bad: ``error``, or ``skip``: find the bad frames instead of an error for the first.

    Returns:
        Positions in Å, energies in eV, forces in eV/Å; ``units`` are those of the file. And the bad
        frames by number, which may hold NaN.

    Raises:
        ValueError: unreadable, incomplete, not finite, another molecule, or units that are unknown
            or contradict the file or the size of the energies. One line that names the file.
    """
    units = units and parse_units(units).name
    is_npz = path.suffix == ".npz"
    bad: dict[int, BadFrame] = {}
    if is_npz:
        with naming_file(path):
            frames = read_one_molecule(path)
    else:
        frames, bad = _read_xyz(path, on_bad)
    with naming_file(path):
        if units is None and frames.units is None and not is_npz:
            raise ValueError(f"does not name its units: give --units, one of {', '.join(UNITS)}")
        if units is not None and frames.units not in (None, units):
            raise ValueError(f"its own e_unit says {frames.units}, got --units {units}")
        units = units or frames.units or "kcal/mol"
        if on_bad == "skip":
            for number, fault in _find_infinite(frames):
                bad.setdefault(number, BadFrame(f"{path}, frame {number}", fault))
        _check(frames, molecule, units, bad)
    unit = UNITS[units]
    converted = replace(
        frames,
        pos=frames.pos * unit.length,
        cell=None if frames.cell is None else frames.cell * unit.length,
        energy=frames.energy * unit.energy,
        forces=frames.forces * unit.force,
        units=units,
    )
    return converted, bad


def _read_xyz(path: Path, on_bad: str) -> tuple[MoleculeFrames, dict[int, BadFrame]]:
    frames = index_source(make_source(path, path.stem))
    labelled = list(map_good_frames(lambda _, atoms: (atoms, *read_labels(atoms)), frames, on_bad))
    bad = {i: frame for i, frame in enumerate(labelled) if isinstance(frame, BadFrame)}
    good = next((frame for frame in labelled if not isinstance(frame, BadFrame)), None)
    if good is None:
        raise ValueError(f"{path}: all {len(bad)} frames are bad, the first: {bad[0].reason}")
    nothing = good[0].copy()
    nothing.positions[:] = np.nan
    filler = (nothing, np.nan, nothing.positions)
    labelled = [filler if i in bad else frame for i, frame in enumerate(labelled)]
    if on_bad == "skip":
        for index, (atoms, *_) in enumerate(labelled):
            if not np.array_equal(atoms.numbers, good[0].numbers):
                fault = "expected the atoms of the first frame, in its order"
                bad[index] = BadFrame(f"{path}, frame {index}", fault)
                labelled[index] = filler
    structures, energy, forces = zip(*labelled, strict=True)
    first = good[0]
    for index, atoms in enumerate(structures):
        if not np.array_equal(atoms.numbers, first.numbers):
            raise ValueError(
                f"{path}: expected the same atoms in every frame, got "
                f"{first.get_chemical_formula()} in frame 0 and {atoms.get_chemical_formula()} in "
                f"frame {index}, or another order of atoms"
            )
        if not np.array_equal(atoms.pbc, first.pbc):
            raise ValueError(f"{path}: expected equal pbc in every frame, got another in {index}")
    pos, cell = (
        np.array([getattr(atoms, name) for atoms in structures]) for name in ("positions", "cell")
    )
    pbc = tuple(first.pbc.tolist())
    named = read_named_units(first.info)
    units = combine_units(**named).name if named else None
    if units not in (None, *UNITS):
        raise ValueError(f"{path}: names the units {units}: dens data convert takes those")
    labels = np.array(energy), np.array(forces), units
    found = MoleculeFrames(path, first.numbers, pos, *labels, cell if any(pbc) else None, pbc)
    return found, bad


def _find_infinite(frames: MoleculeFrames) -> Iterator[tuple[int, str]]:
    """Yield the number and the fault of frames with NaN or infinity."""
    arrays = {"positions": frames.pos, "energies": frames.energy, "forces": frames.forces}
    for name, values in arrays.items():
        good = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        for number in np.flatnonzero(~good).tolist():
            yield number, f"{name} must be finite, got NaN or infinity"


def _check(
    frames: MoleculeFrames, molecule: Molecule, units: str, bad: Collection[int] = ()
) -> None:
    for number, fault in _find_infinite(frames):
        if number not in bad:
            raise ValueError(f"{fault} in frame {number}")
    numbers = frames.numbers
    known = (numbers > 0) & (numbers < len(chemical_symbols))
    if not known.all():
        raise ValueError(f"expected atomic numbers, got {numbers[~known][0]}")
    found = Counter(chemical_symbols[number] for number in numbers)
    if found != molecule.composition:
        formula = Formula.from_dict(found).format("hill")
        raise ValueError(f"expected {molecule.name}, {molecule.formula}, got {formula}")
    # total energies that fit the molecule in other units; shifted ones fit none
    mean = np.delete(frames.energy, list(bad)).mean()
    suspected = suspected_units(numbers, mean, units)
    if suspected:
        raise ValueError(
            f"its mean energy, {mean:.0f}, fits the molecule in {suspected}, not in {units}: "
            f"give --units {suspected}"
        )


def download(molecule: Molecule, path: Path) -> None:
    """Fetch the original MD17 set of a molecule to ``path``, which appears once it is complete.

    Complete means readable, with the known composition and number of frames. The site publishes no
    checksum of its files.

    Raises:
        ValueError: the site cannot be reached, or sends something else.
    """
    url = molecule.url
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_file(path) as file:
            with urllib.request.urlopen(url, timeout=60) as response:
                shutil.copyfileobj(response, file, 1 << 20)
            file.flush()
            with naming_file(url):
                frames = read_one_molecule(file.name)
                _check(frames, molecule, frames.units or "kcal/mol")
                if len(frames) != molecule.frames:
                    raise ValueError(f"expected {molecule.frames} frames, got {len(frames)}")
    except (OSError, HTTPException) as error:
        raise ValueError(f"{url}: cannot be downloaded: {error}") from error
