"""The texts of OC20: lines for frames, and the word that marks molecular dynamics.

OC20's files do not say whether a structure comes from a relaxation or from MD. It counts as MD
where its origin has the word ``md``, with no letter on either side of it, in any case:
``s2ef_md/0.extxyz``, ``md/random1234,frame56``, ``MD_3``; but not ``cmd`` or ``mdf``.
"""

from __future__ import annotations

import lzma
import re
from dataclasses import dataclass
from pathlib import Path

from dens.data.sources.ase import open_packed

_MD = re.compile(r"(?<![a-z])md(?![a-z])", re.IGNORECASE)
_LINE = re.compile(r"(.*?random(\d+)),.*?frame(\d+)(?:,([^,]*))?")


def says_md(origin: str) -> bool:
    """Whether the origin of a structure has the word ``md``, see above."""
    return _MD.search(origin) is not None


@dataclass(frozen=True)
class Line:
    """What a line of text says about its frame; ``reference`` is in eV."""

    sid: int
    fid: int
    reference: float | None
    md: bool


def parse_line(text: str) -> Line:
    """Read ``random1234,frame56,-101.2``.

    Raises:
        ValueError: another form.
    """
    match = _LINE.fullmatch(text.strip())
    try:
        system, sid, fid, reference = match.groups()
        return Line(int(sid), int(fid), reference and float(reference), says_md(system))
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"expected a line like random1234,frame56,-101.2, got {text.strip()!r}"
        ) from error


def read_text(path: str | Path) -> list[str]:
    """The lines of a text, which may be packed.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with open_packed(path) as file:
            return file.read().decode().splitlines()
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def read_lines(path: str) -> list[Line]:
    """The lines of a text of the download.

    Raises:
        ValueError: it cannot be read, or a line has another form.
    """
    lines = []
    for number, text in enumerate(read_text(path), start=1):
        try:
            lines.append(parse_line(text))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return lines
