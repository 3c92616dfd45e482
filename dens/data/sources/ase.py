"""Count the frames of files with labelled structures, and read a selection of them.

ASE reads all formats. This module adds what a large conversion needs: the number of frames before
they are read, and random access where the format allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import ase.io
from ase import Atoms
from ase.io import Trajectory
from ase.io.formats import open_with_compression

from dens.data.sources.formats.cp2k import companions, find_cp2k_frames, read_cp2k_frame
from dens.data.sources.formats.database import (
    connect,
    has_stress,
    make_structure,
    read_database_units,
)
from dens.data.sources.formats.deepmd import read_deepmd
from dens.data.sources.formats.vasp import read_vasp
from dens.data.sources.formats.xyz import find_xyz_frames, read_xyz_frame
from dens.data.sources.npz import MoleculeFrames, read_npz
from dens.data.sources.reading import choose_labels, read_stress
from dens.data.sources.search import Source
from dens.data.sources.starts import add_start, choose_start

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class FrameSelection:
    """A selection of frames of one file, with what finds them (xyz: `XyzFrame`, cp2k: `Cp2kFrame`,
    db: row ids).

    ``keys`` is empty for other kinds; ``with_stress`` counts the frames of a whole file that have
    the stress; ``starts`` are the frames that these were relaxed from, one for each; ``cut`` tells
    why the file cannot be read beyond its last frame, if that is among them.
    """

    source: Source
    numbers: Sequence[int]
    keys: tuple = ()
    with_stress: int = 0
    starts: FrameSelection | None = None
    cut: str = ""

    def select(self, places: Sequence[int]) -> FrameSelection:
        """Select frames by their places in this selection: in all frames of a file, by number."""
        keys = tuple(self.keys[i] for i in places) if self.keys else ()
        starts = self.starts and self.starts.select(places)
        cut = self.cut if len(self.numbers) - 1 in places else ""
        numbers = tuple(self.numbers[i] for i in places)
        return FrameSelection(self.source, numbers, keys, 0, starts, cut)


def read_units(source: Source) -> str | None:
    """Read the units that a file names; only ``.npz`` and databases may name any.

    Raises:
        ValueError: the file cannot be read.
    """
    if source.kind == "deepmd":
        return "eV-A"
    with naming_file(source.path):
        if source.kind == "npz":
            return read_npz(source.path, source.options).units
        if source.kind in ("db", "json"):
            return read_database_units(source.path)
    return None


def index_source(source: Source, allow_cut: bool = False) -> FrameSelection:
    """Find all frames of a source.

    Args:
        allow_cut: of a file that cannot be read to its end, take the frames before that.

    Raises:
        ValueError: the file cannot be read, is truncated, or has no frame.
    """
    key, cut = source.options.stress_key, ""
    with naming_file(source.path):
        keys: tuple = ()
        if source.kind in ("xyz", "cp2k"):
            keys, cut = _find_frames(source, allow_cut)
            marks = [source.kind == "xyz" and frame.has_stress for frame in keys]
        elif source.kind == "db":
            with connect(source.path) as database:
                rows = database.select(include_data=key is not None)
                found = [(row.id, has_stress(row, key)) for row in rows]
            keys, marks = (tuple(part) for part in zip(*found, strict=True)) if found else ((), ())
        else:
            with _open_sequence(source) as structures:
                marks = list(_find_stress(source, structures, allow_cut))
        if not marks:
            size = f"none in its {source.size} bytes" if source.size else "an empty file"
            raise ValueError(f"expected structures, got {size}")
    return FrameSelection(source, range(len(marks)), keys, sum(marks), cut=cut)


def _find_frames(source: Source, allow_cut: bool) -> tuple[tuple, str]:
    """Find the frames of a text file, and why it cannot be read beyond them ("": it can)."""
    found: list = []
    try:
        if source.kind == "cp2k":
            found.extend(find_cp2k_frames(source.path))
        else:
            found.extend(find_xyz_frames(source.path, source.options.stress_key or "stress"))
    except Exception as error:  # a damaged archive raises anything
        if not (allow_cut and found):
            raise
        return tuple(found), f"{_reason(error)}: the file is left out from there on"
    return tuple(found), ""


def _find_stress(source: Source, structures: Sequence[Atoms], allow_bad: bool) -> Iterator[bool]:
    """Tell for each structure whether it has the stress; a bad one counts as the one before."""
    key = source.options.stress_key
    if not source.options.labels:
        yield from [False] * len(structures)
        return
    if isinstance(structures, MoleculeFrames):
        yield from [(key or "stress") in structures.others] * len(structures)
        return
    mark = False
    for number in range(len(structures)):
        try:
            if isinstance(structures, ase.io.trajectory.TrajectoryReader) and key is None:
                image = structures.backend[number]  # reads no array
                mark = "calculator" in image and "stress" in image.calculator
            else:
                atoms = structures[number]
                mark = key in atoms.info if key else read_stress(atoms) is not None
        except Exception:
            if not allow_bad:
                raise
        yield mark


def read_frames(frames: FrameSelection) -> Iterator[tuple[int, Atoms]]:
    """Read frames: the number and the structure of each.

    ``atoms.info`` also has the data and the key-value pairs of a database, and ``atoms.arrays``
    the start of a pair, see `dens.data.sources.starts`.

    Raises:
        ValueError: the file cannot be read, or lacks a label that the source's options name; a
            start that is another structure.
    """
    if frames.starts is None:
        yield from _read_selection(frames)
        return
    starts, path = _read_selection(frames.starts), frames.source.path
    is_same = frames.starts.source.path == path
    for (number, atoms), (first, start) in zip(_read_selection(frames), starts, strict=True):
        with naming_frame(path, number):
            # a trajectory of one frame has no start
            add_start(atoms, None if is_same and first == number else start)
        yield number, atoms


def _read_selection(frames: FrameSelection) -> Iterator[tuple[int, Atoms]]:
    source = frames.source
    with naming_file(source.path):
        if source.kind == "xyz":
            with open_with_compression(source.path, "rb") as file:
                text_key = source.options.group_key

                def read(key) -> Atoms:
                    return read_xyz_frame(file, key, text_key)

                yield from _read_each(frames, frames.keys, read)
        elif source.kind == "cp2k":
            paths = (source.path, str(companions(Path(source.path))[0]))
            with (
                open_with_compression(paths[0], "rb") as file,
                open_with_compression(paths[1], "rb") as forces,
            ):
                yield from _read_each(frames, frames.keys, partial(read_cp2k_frame, file, forces))
        elif source.kind == "db":
            with connect(source.path) as database:
                yield from _read_each(
                    frames, frames.keys, lambda key: make_structure(database.get(id=key))
                )
        else:
            with _open_sequence(source) as structures:
                yield from _read_each(frames, frames.numbers, structures.__getitem__)


def _read_each(
    frames: FrameSelection, keys: Sequence, read: Callable[..., Atoms]
) -> Iterator[tuple[int, Atoms]]:
    for number, key in zip(frames.numbers, keys, strict=True):
        try:
            atoms = choose_labels(read(key), frames.source.options)
            choose_start(atoms, frames.source.options.pairs_key)
        except Exception as error:
            raise _FrameError(f"frame {number}: {_reason(error)}") from error
        yield number, atoms


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


def _open_sequence(source: Source):
    """Open a file as a sequence of structures."""
    if source.kind == "traj":
        return Trajectory(source.path)
    if source.kind == "npz":
        return nullcontext(read_npz(source.path, source.options))
    if source.kind == "deepmd":
        return nullcontext(read_deepmd(source.path, source.options.labels))
    if source.kind == "json":
        with connect(source.path) as database:
            return nullcontext([make_structure(row) for row in database.select()])
    if source.kind in ("vasp-xml", "vasp-out"):
        return nullcontext(read_vasp(source.path, source.kind))
    return nullcontext(ase.io.read(source.path, ":", do_not_split_by_at_sign=True))


class _FrameError(ValueError):
    """An error of a reader that names its frame."""


@contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Turn any error of a reader into a ValueError that names the file: on damaged files, readers
    raise anything."""
    try:
        yield
    except _FrameError as error:
        raise ValueError(f"{path}, {error}") from error
    except ModuleNotFoundError as error:
        package = (error.name or "").replace("_", "-")
        raise ValueError(
            f"{path}: reading it needs the package {package}: pip install fairchem-dens[formats]"
        ) from error
    except Exception as error:
        raise ValueError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


@contextmanager
def naming_frame(path: str, number: int) -> Iterator[None]:
    """Name file and frame in the ValueErrors of a block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}, frame {number}: {error}") from error
