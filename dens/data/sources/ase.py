"""Find files with labelled structures, count their frames, and read a selection of frames.

ASE reads all formats. This module adds what a large conversion needs: the number of frames before
they are read, and random access where the format allows it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.io import Trajectory
from ase.io.formats import get_compression, open_with_compression

from dens.data.sources.npz import read_npz

_KINDS = {
    ".traj": "traj",
    ".xyz": "xyz",
    ".extxyz": "xyz",
    ".db": "db",
    ".aselmdb": "db",
    ".npz": "npz",
}
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Source:
    """One file. ``name`` is unique among the sources and becomes the sid of its frames; ``size``
    (bytes) and ``mtime`` (ns) show whether it changed."""

    path: str
    name: str
    size: int
    mtime: int

    @property
    def kind(self) -> str:
        """traj, xyz (extended), db, npz, vasp, or ase: any other format that ASE reads."""
        name, _ = get_compression(os.path.basename(self.path))
        if name.startswith(("vasprun", "OUTCAR")):
            return "vasp"
        return _KINDS.get(os.path.splitext(name)[1], "ase")

    @property
    def is_compressed(self) -> bool:
        """Whether it ends in .xz, .gz or .bz2."""
        return get_compression(self.path)[1] is not None


@dataclass(frozen=True)
class FrameSelection:
    """A selection of frames of one file, with the byte ranges (xyz) or row ids (db) to read them;
    ``keys`` is empty for other kinds."""

    source: Source
    numbers: Sequence[int]
    keys: tuple = ()

    def select(self, numbers: Sequence[int]) -> FrameSelection:
        """Select frames by number, out of all frames of a file."""
        keys = tuple(self.keys[i] for i in numbers) if self.keys else ()
        return FrameSelection(self.source, tuple(numbers), keys)


def find_sources(paths: Sequence[str | Path]) -> list[Source]:
    """Find the files under the given paths.

    Args:
        paths: files, and folders that are searched for files of known kinds, subfolders included.
            An OUTCAR beside a vasprun.xml is left out.

    Returns:
        In the order given, each folder sorted by name. Names are relative to the common folder.

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
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_known(path)]
    with_xml = {path.parent for path in files if path.name.startswith("vasprun")}
    return [p for p in files if not (p.name.startswith("OUTCAR") and p.parent in with_xml)]


def _is_known(path: Path) -> bool:
    source = Source(str(path), "", 0, 0)
    return source.kind in ("xyz", "vasp") or (source.kind != "ase" and not source.is_compressed)


def _names(paths: list[Path]) -> list[str]:
    """Name the files uniquely, without suffixes where that is enough to tell them apart."""
    root = os.path.commonpath([path.parent for path in paths])
    full = [os.path.relpath(path, root) for path in paths]
    short = [os.path.join(os.path.dirname(n), os.path.basename(n).split(".")[0]) for n in full]
    return short if len(set(short)) == len(short) else full


def make_source(path: Path, name: str) -> Source:
    """Make the source of a file, with its size and time."""
    status = path.stat()
    return Source(str(path), name, status.st_size, status.st_mtime_ns)


def read_units(source: Source) -> str | None:
    """Read the units that a file names; only an ``.npz`` may name any.

    Raises:
        ValueError: the file cannot be read.
    """
    if source.kind != "npz":
        return None
    with naming_file(source.path):
        return read_npz(source.path).units


def index_source(source: Source) -> FrameSelection:
    """Find all frames of a source.

    Raises:
        ValueError: the file cannot be read, is truncated, or has no frame.
    """
    with naming_file(source.path):
        keys = ()
        if source.kind == "xyz":
            keys = tuple(_find_xyz_frames(source.path))
        elif source.kind == "db":
            with _connect(source.path) as database:
                keys = tuple(row.id for row in database.select(include_data=False))
        if source.kind in ("xyz", "db"):
            count = len(keys)
        else:
            with _open_sequence(source) as structures:
                count = len(structures)
    if count == 0:
        raise ValueError(f"{source.path}: expected structures, got an empty file")
    return FrameSelection(source, range(count), keys)


def _find_xyz_frames(path: str) -> Iterator[tuple[int, int]]:
    """Find the first byte of each frame, and the first byte after it."""
    with open_with_compression(path, "rb") as file:
        number = end = 0
        while (line := file.readline()).strip():  # ASE also ends at an empty line
            if not line.strip().isdigit():
                raise ValueError(
                    f"frame {number}: expected the number of atoms, got {line[:40].decode()!r}"
                )
            start, end = end, end + len(line)
            for read in range(int(line) + 1):
                line = file.readline()
                if not line:
                    raise ValueError(f"frame {number} is cut off after {read} lines")
                end += len(line)
            yield start, end
            number += 1


def read_frames(frames: FrameSelection) -> Iterator[tuple[int, Atoms]]:
    """Read frames: the number and the structure of each.

    ``atoms.info`` also has the key-value pairs of a database.

    Raises:
        ValueError: the file cannot be read.
    """
    source = frames.source
    with naming_file(source.path):
        if source.kind == "xyz":
            with open_with_compression(source.path, "rb") as file:
                for number, (start, end) in zip(frames.numbers, frames.keys, strict=True):
                    file.seek(start)
                    text = io.StringIO(file.read(end - start).decode())
                    yield number, ase.io.read(text, format="extxyz")
        elif source.kind == "db":
            with _connect(source.path) as database:
                for number, row_id in zip(frames.numbers, frames.keys, strict=True):
                    row = database.get(id=row_id)
                    atoms = row.toatoms()
                    atoms.info.update(row.key_value_pairs)
                    yield number, atoms
        else:
            with _open_sequence(source) as structures:
                yield from ((number, structures[number]) for number in frames.numbers)


def map_frames(
    function: Callable[[int, Atoms], _Result], frames: FrameSelection
) -> Iterator[_Result]:
    """Call a function with the number and the structure of each frame.

    Raises:
        ValueError: a file that cannot be read, or an error of `function`, with file and frame.
    """
    for number, atoms in read_frames(frames):
        with naming_frame(frames.source.path, number):
            result = function(number, atoms)
        yield result


def read_labels(atoms: Atoms) -> tuple[float, np.ndarray]:
    """Read the energy, and the forces, (n_atoms, 3), from the results of a calculator.

    Raises:
        ValueError: there are none, or several energies.
    """
    # asking the structure itself would compare it with the calculator's copy, which is slow
    results = getattr(atoms.calc, "results", {})
    if results.get("energy") is None or results.get("forces") is None:
        has = [name for name, value in results.items() if value is not None]
        known = ", ".join(map(str, [*has, *atoms.info, *atoms.arrays]))
        raise ValueError(f"expected energy and forces, got only {known}")
    energy = np.asarray(results["energy"], dtype=float)
    if energy.size != 1:
        raise ValueError(f"expected one energy, got {energy.shape}")
    return energy.item(), np.asarray(results["forces"], dtype=float)


def _open_sequence(source: Source):
    """Open a file as a sequence of structures."""
    if source.kind == "traj":
        return Trajectory(source.path)
    if source.kind == "npz":
        return nullcontext(read_npz(source.path))
    return nullcontext(ase.io.read(source.path, ":"))


@contextmanager
def _connect(path: str):
    options = {"readonly": True} if path.endswith(".aselmdb") else {}
    if not options:
        with open(path, "rb") as file:  # ASE would make a database of an empty file
            if file.read(6) != b"SQLite":
                raise ValueError("expected an SQLite database as ASE writes it")
    with ase.db.connect(path, **options) as database:
        yield database


@contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Turn any error of a reader into a ValueError that names the file: on damaged files, readers
    raise anything."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").replace("_", "-")
        raise ValueError(f"{path}: reading it needs the package {package}") from error
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: {reason}") from error


@contextmanager
def naming_frame(path: str, number: int) -> Iterator[None]:
    """Name file and frame in the ValueErrors of a block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}, frame {number}: {error}") from error
