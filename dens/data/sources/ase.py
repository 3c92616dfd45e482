"""Files with labelled structures: finding them, counting their frames, reading some of them.

ASE reads all of them. This module adds what a large conversion needs: the number of frames before
they are read, and any part of a file without the rest where the format allows it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import ase.db
import ase.io
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import Trajectory

from dens.data.sources.md17 import read_npz

_PACKED: dict[str, Callable[[str], BinaryIO]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
}
_KINDS = {
    ".traj": "traj",
    ".xyz": "xyz",
    ".extxyz": "xyz",
    ".db": "db",
    ".aselmdb": "db",
    ".npz": "npz",
}


@dataclass(frozen=True)
class Source:
    """One file. ``name`` is unique among the sources and becomes the sid of its frames; ``size``
    (bytes) and ``mtime`` (ns) tell whether it changed."""

    path: str
    name: str
    size: int
    mtime: int

    @property
    def kind(self) -> str:
        """traj, xyz (extended, maybe packed), db, npz, vasp, or ase: whatever else ASE reads."""
        return kind_of(self.path)


@dataclass(frozen=True)
class Frames:
    """Some frames of a source: their numbers, and what finds each of them in the file (the first
    and the last byte of an xyz frame, the id of a row), if anything."""

    source: Source
    numbers: tuple[int, ...]
    keys: tuple


@dataclass(frozen=True)
class Index:
    """Where the frames of a source are: how many there are, and their keys (see `Frames`)."""

    source: Source
    count: int
    keys: tuple | None

    def frames(self, numbers: Sequence[int]) -> Frames:
        """The frames of these numbers."""
        keys = () if self.keys is None else tuple(self.keys[i] for i in numbers)
        return Frames(self.source, tuple(numbers), keys)


def kind_of(path: str | Path) -> str | None:
    """The kind of a file by its name, see `Source`."""
    path = Path(path)
    if path.suffix in _PACKED:
        path = path.with_suffix("")
    if path.name.startswith(("vasprun", "OUTCAR")):
        return "vasp"
    return _KINDS.get(path.suffix, "ase")


def find_sources(paths: Sequence[str | Path]) -> list[Source]:
    """The files under the given paths. A file stands for itself; a folder for the files of known
    kinds in and below it (with both, vasprun.xml counts and the OUTCAR beside it does not).

    Returns:
        In the order given, folders sorted by name. Names are relative to the common folder.

    Raises:
        ValueError: a path that does not exist, a folder without such files, a file given twice.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        files = [path] if path.is_file() else _search(path)
        if not files:
            raise ValueError(
                f"{path}: expected files with structures ({', '.join(_KINDS)}, vasprun.xml, "
                "OUTCAR; xyz also as .xz, .gz, .bz2), found none"
            )
        found += files
    absolute = [Path(os.path.abspath(path)) for path in found]
    if len(set(absolute)) < len(absolute):
        twice = next(path for path in absolute if absolute.count(path) > 1)
        raise ValueError(f"{twice} is given twice")
    return [make_source(path, name) for path, name in zip(absolute, _names(absolute), strict=True)]


def _search(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _is_known(path))
    with_xml = {path.parent for path in files if path.name.startswith("vasprun")}
    return [p for p in files if not (p.name.startswith("OUTCAR") and p.parent in with_xml)]


def _is_known(path: Path) -> bool:
    kind = kind_of(path)
    return kind != "ase" and (path.suffix not in _PACKED or kind in ("xyz", "vasp"))


def _names(paths: list[Path]) -> list[str]:
    """Unique, without suffixes where that is enough to tell the files apart."""
    root = os.path.commonpath([path.parent for path in paths])
    full = [os.path.relpath(path, root) for path in paths]
    short = [
        os.path.join(os.path.dirname(name), os.path.basename(name).split(".")[0]) for name in full
    ]
    return short if len(set(short)) == len(short) else full


def make_source(path: Path, name: str) -> Source:
    """The source at a path."""
    status = path.stat()
    return Source(str(path), name, status.st_size, status.st_mtime_ns)


def named_units(source: Source) -> str | None:
    """The units that a file names, which only an ``.npz`` may do.

    Raises:
        ValueError: it cannot be read.
    """
    if source.kind != "npz":
        return None
    with _explained(source.path):
        return read_npz(Path(source.path))[-1]


def index_source(source: Source) -> Index:
    """Count the frames of a source.

    Raises:
        ValueError: it cannot be read, is cut off, or has no frame.
    """
    with _explained(source.path):
        count, keys = _COUNT.get(source.kind, _count_all)(source.path)
    if count == 0:
        raise ValueError(f"{source.path}: expected structures, got an empty file")
    return Index(source, count, keys)


def _count_traj(path: str) -> tuple[int, None]:
    with Trajectory(path) as trajectory:
        return len(trajectory), None


def _count_xyz(path: str) -> tuple[int, tuple]:
    keys = []
    with open_packed(path) as file:
        start = 0
        while line := file.readline():
            if not line.strip():  # ASE also ends there
                break
            if not line.strip().isdigit():
                raise ValueError(
                    f"frame {len(keys)}: expected the number of atoms, got {line[:40].decode()!r}"
                )
            end = start + len(line)
            for read in range(int(line) + 1):
                line = file.readline()
                if not line:
                    raise ValueError(f"frame {len(keys)} is cut off after {read} lines")
                end += len(line)
            keys.append((start, end))
            start = end
    return len(keys), tuple(keys)


def _count_db(path: str) -> tuple[int, tuple]:
    with _connect(path) as database:
        ids = tuple(row.id for row in database.select(include_data=False))
    return len(ids), ids


def _count_npz(path: str) -> tuple[int, None]:
    _, pos, *_ = read_npz(Path(path))
    return len(pos), None


def _count_all(path: str) -> tuple[int, None]:
    return len(ase.io.read(path, ":")), None


_COUNT = {"traj": _count_traj, "xyz": _count_xyz, "db": _count_db, "npz": _count_npz}


def read_frames(frames: Frames) -> Iterator[tuple[int, Atoms]]:
    """Read frames: their numbers and the structures.

    ``atoms.info`` also has the key-value pairs of a database.

    Raises:
        ValueError: the file cannot be read.
    """
    with _explained(frames.source.path):
        yield from _READ.get(frames.source.kind, _iter_all)(frames)


def _iter_traj(frames: Frames) -> Iterator[tuple[int, Atoms]]:
    with Trajectory(frames.source.path) as trajectory:
        for number in frames.numbers:
            yield number, trajectory[number]


def _iter_xyz(frames: Frames) -> Iterator[tuple[int, Atoms]]:
    with open_packed(frames.source.path) as file:
        for number, (start, end) in zip(frames.numbers, frames.keys, strict=True):
            file.seek(start)
            text = io.StringIO(file.read(end - start).decode())
            yield number, ase.io.read(text, format="extxyz")


def _iter_db(frames: Frames) -> Iterator[tuple[int, Atoms]]:
    with _connect(frames.source.path) as database:
        for number, row_id in zip(frames.numbers, frames.keys, strict=True):
            row = database.get(id=row_id)
            atoms = row.toatoms()
            atoms.info.update(row.key_value_pairs)
            yield number, atoms


def _iter_npz(frames: Frames) -> Iterator[tuple[int, Atoms]]:
    numbers, pos, energy, forces, _ = read_npz(Path(frames.source.path))
    if not (pos.shape == forces.shape == (len(energy), len(numbers), 3)):
        raise ValueError(
            f"expected positions and forces ({len(energy)}, {len(numbers)}, 3) for its energies "
            f"and atoms, got {pos.shape} and {forces.shape}"
        )
    for number in frames.numbers:
        atoms = Atoms(numbers, pos[number])
        labels = {"energy": energy[number], "forces": forces[number]}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        yield number, atoms


def _iter_all(frames: Frames) -> Iterator[tuple[int, Atoms]]:
    structures = ase.io.read(frames.source.path, ":")
    for number in frames.numbers:
        yield number, structures[number]


_READ = {"traj": _iter_traj, "xyz": _iter_xyz, "db": _iter_db, "npz": _iter_npz}


def open_packed(path: str | Path) -> BinaryIO:
    """Open a file for reading bytes, unpacking .xz, .gz and .bz2."""
    return _PACKED.get(Path(path).suffix, lambda name: open(name, "rb"))(str(path))


@contextmanager
def _connect(path: str):
    if path.endswith(".aselmdb"):
        with ase.db.connect(path, readonly=True) as database:
            yield database
    else:
        with open(path, "rb") as file:  # ASE would make a database of an empty file
            if file.read(6) != b"SQLite":
                raise ValueError("expected an SQLite database as ASE writes it")
        with ase.db.connect(path) as database:
            yield database


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Name the file in whatever its reader raises; readers raise anything on broken files."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").replace("_", "-")
        raise ValueError(f"{path}: reading it needs the package {package}") from error
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: {reason}") from error
