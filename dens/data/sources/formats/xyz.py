"""Read extended XYZ: find the frames of a file, and read one of them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.io.formats import open_with_compression

_BOM = b"\xef\xbb\xbf"


class XyzFrame(NamedTuple):
    """Place of a frame: its first byte, the first byte after it, the number of its first line (from
    1), and whether its comment line names the stress."""

    start: int
    end: int
    line: int
    has_stress: bool


def find_xyz_frames(path: str, stress_key: str = "stress") -> Iterator[XyzFrame]:
    """Find the frames of a file, with the VEC lines that may follow the atoms of each.

    Empty lines between frames are passed over.

    Raises:
        ValueError: a frame that is cut off, or a line that does not belong to one; names the line.
    """
    stress = re.compile(rb"(^|\s)" + re.escape(stress_key.encode()) + rb"\s*=")
    with open_with_compression(path, "rb") as file:
        lines = _Lines(file)
        number = 0
        while line := lines.next_filled():
            start, first = lines.start, lines.number
            if not line.strip().isdigit():
                raise ValueError(
                    f"line {first}, frame {number}: expected the number of atoms, got "
                    f"{_shown(line)}"
                )
            comment = lines.read()
            for atom in range(int(line)):
                _check_atom(lines.read(), atom, int(line), number, lines)
            if not comment:
                raise ValueError(f"frame {number} is cut off after 0 lines")
            lines.skip_vectors()
            yield XyzFrame(start, lines.end, first, stress.search(comment) is not None)
            number += 1


def _check_atom(line: bytes, atom: int, count: int, number: int, lines: _Lines) -> None:
    if not line:
        raise ValueError(f"frame {number} is cut off after {atom + 1} lines")
    if len(line.split(None, 3)) < 4:
        raise ValueError(
            f"line {lines.number}, frame {number}: expected atom {atom + 1} of {count}, with its "
            f"element and position, got {_shown(line)}"
        )


class _Lines:
    """Lines of a file, with the number, the first byte and the end of the last one read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ahead: bytes | None = None
        self.number = self.start = self.end = 0

    def read(self) -> bytes:
        """Read a line; empty at the end of the file."""
        line = self._peek()
        self._ahead = None
        if line:
            self.number += 1
            self.start, self.end = self.end, self.end + len(line)
        if self.number == 1 and line.startswith(_BOM):
            self.start += len(_BOM)
            line = line[len(_BOM) :]
        return line

    def next_filled(self) -> bytes:
        """Read the next line that is not blank."""
        while (line := self.read()) and not line.strip():
            pass
        return line

    def skip_vectors(self) -> None:
        """Read up to three lines like ``VEC1 3.6 0 0``."""
        for _ in range(3):
            if not self._peek().lstrip().startswith(b"VEC"):
                return
            self.read()

    def _peek(self) -> bytes:
        if self._ahead is None:
            self._ahead = self._file.readline()
        return self._ahead


def read_xyz_frame(
    file: BinaryIO, frame: XyzFrame, text_key: str | None = None, comment: str | None = None
) -> Atoms:
    """Read a frame.

    Args:
        file: the file, opened for bytes.
        text_key: key of the comment line whose value stays the text that it is.
        comment: takes the place of the comment line.

    Raises:
        ValueError: a label that is no element.
    """
    file.seek(frame.start)
    raw = file.read(frame.end - frame.start)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    lines = text.split("\n")
    end = int(lines[0]) + 2
    lines[1] = lines[1] if comment is None else comment
    try:
        atoms = ase.io.read(io.StringIO("\n".join(lines[:end])), format="extxyz")
    except KeyError as error:
        label = error.args[0]
        if label in atomic_numbers or not isinstance(label, str):
            raise
        raise ValueError(f"{label!r} is no element") from error
    _set_vectors(atoms, lines[end:], lines[1])
    if text_key in atoms.info:
        found = re.search(
            rf"""(?:^|\s){re.escape(text_key)}\s*=\s*("[^"]*"|'[^']*'|\{{[^}}]*\}}|\[[^]]*\]|\S+)""",
            lines[1],
        )
        atoms.info[text_key] = found[1].strip("\"'{}[]") if found else atoms.info[text_key]
    return atoms


def _set_vectors(atoms: Atoms, lines: list[str], comment: str) -> None:
    """Take the cell from the lines VEC1, VEC2, VEC3 after the atoms."""
    words = [line.split() for line in lines if line.strip()]
    if not words:
        return
    names = [f"VEC{i + 1}" for i in range(len(words))]
    if [entry[0] for entry in words] != names or any(len(entry) != 4 for entry in words):
        raise ValueError(f"expected {', '.join(names)} with three numbers each, got {lines[0]!r}")
    cell = np.zeros((3, 3))
    cell[: len(words)] = [[float(x) for x in entry[1:]] for entry in words]
    if atoms.cell.any() and not np.allclose(atoms.cell.array, cell, atol=1e-6):
        raise ValueError("its Lattice and its VEC lines give different cells")
    atoms.set_cell(cell)
    if not re.search(r"(^|\s)pbc\s*=", comment):
        atoms.pbc = [i < len(words) for i in range(3)]


def _shown(line: bytes) -> str:
    text = line.strip()[:40].decode(errors="replace")
    return repr(text) if text else "an empty line"
