"""Find and read OC20's S2EF files: pairs of extxyz and text, or LMDB folders with their logs.

OC20's files do not say whether a structure comes from a relaxation or from molecular dynamics (MD).
It counts as MD if its origin has the word ``md``, with no letter on either side of it, in any case:
``s2ef_md/0.extxyz``, ``md/random1234,frame56``, ``MD_3``; but not ``cmd`` or ``mdf``.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ase.io.formats import open_with_compression

from dens.data.sources.search import Source, make_source
from dens.data.store.lmdb import count_records, open_lmdb

CHUNK = 256  # LMDB records per task
SHOWN = 8  # names in a line

_MD = re.compile(r"(?<![a-z])md(?![a-z])", re.IGNORECASE)
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_LINE = re.compile(rf"\s*(.*?random(\d+)),.*?frame(\d+)(?:,\s*({_NUMBER})?)?\s*")


def says_md(origin: str) -> bool:
    """Tell whether the origin of a structure has the word ``md``, see above."""
    return _MD.search(origin) is not None


@dataclass(frozen=True)
class Line:
    """Identifiers of a frame, its reference energy (eV), and whether it comes from MD."""

    sid: int
    fid: int
    reference: float | None
    md: bool


def read_text(path: str | Path) -> list[str]:
    """Read the lines of a text file, which may be compressed.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with open_with_compression(str(path), "rb") as file:
            return file.read().decode().splitlines()
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def read_lines(path: str) -> list[Line]:
    """Read the text file of a pair, with lines like ``random1234,frame56,-101.2``.

    Raises:
        ValueError: it cannot be read, or a line has another form.
    """
    lines = []
    for number, text in enumerate(read_text(path), start=1):
        match = _LINE.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{path}, line {number}: expected a line like random1234,frame56,-101.2, got "
                f"{text.strip()!r}"
            )
        system, sid, fid, reference = match.groups()
        lines.append(Line(int(sid), int(fid), reference and float(reference), says_md(system)))
    return lines


@dataclass(frozen=True)
class Pair:
    """A pair of files of the download, and the origin of its structures.

    ``md`` tells whether they come from MD; None if the origin, or the text, tells it.
    """

    structures: Source
    text: Source
    origin: str
    md: bool | None
    count: int


def find_pairs(
    folder: Path,
    md: bool | None,
    refuse: Callable[[Path, ValueError], None],
    say: Callable[[str], None],
) -> list[Pair]:
    """Find the pairs of files in and below a folder, in the order of their numbers.

    Args:
        refuse: called with a file without its partner, or whose text cannot be read, and the error.
        say: takes a line with the files that are there twice, packed and unpacked.

    Raises:
        ValueError: there are none.
    """
    partners = _group_files(folder, say)
    # other text files do not count
    stems = [stem for stem, files in partners.items() if "extxyz" in files or stem.name.isdigit()]
    if not stems:
        raise ValueError(f"{folder}: expected *.extxyz and *.txt (or .xz), or *.lmdb, found none")
    pairs = []
    for stem in sorted(stems, key=lambda p: (p.parent, not p.name.isdigit(), len(p.name), p)):
        files = partners[stem]
        missing = {"extxyz", "txt"} - files.keys()
        if missing:
            error = ValueError(
                f"{stem}.{missing.pop()} is missing: expected {stem.name}.extxyz "
                f"and {stem.name}.txt (or .xz) side by side"
            )
            refuse(next(iter(files.values())), error)
            continue
        try:
            count = len(read_text(files["txt"]))
        except ValueError as error:
            refuse(files["txt"], error)
            continue
        origin = str(Path(folder.resolve().name, files["extxyz"].relative_to(folder)))
        structures, text = (make_source(files[kind], origin) for kind in ("extxyz", "txt"))
        pairs.append(Pair(structures, text, origin, md, count))
    return pairs


def _group_files(folder: Path, say: Callable[[str], None]) -> dict[Path, dict[str, Path]]:
    """Find the extxyz and the text, by these words, of each path without suffixes."""
    partners: dict[Path, dict[str, Path]] = {}
    twins = []
    for path in sorted(folder.rglob("*")):  # so that an uncompressed file goes before its .xz
        match = re.fullmatch(r"(.+)\.(extxyz|txt)(\.xz)?", path.name)
        if match and path.is_file():
            taken = partners.setdefault(path.with_name(match[1]), {}).setdefault(match[2], path)
            twins += [path] if taken != path else []
    if twins:
        more = f" and {len(twins) - SHOWN} more" if len(twins) > SHOWN else ""
        names = ", ".join(str(path.relative_to(folder)) for path in twins[:SHOWN])
        say(f"{folder}: left out, since the unpacked file lies beside it: {names}{more}")
    return partners


@dataclass(frozen=True)
class LmdbRecords:
    """Records ``start`` .. ``stop - 1`` of an LMDB file, and its log if there is one.

    ``md`` tells whether they come from MD; None if the log tells it.
    """

    file: Source
    log: Source | None
    start: int
    stop: int
    md: bool | None

    @property
    def count(self) -> int:
        return self.stop - self.start


def find_lmdb_records(
    folder: Path,
    logs: Path | None,
    md: bool | None,
    refuse: Callable[[Path, ValueError], None],
) -> list[LmdbRecords]:
    """Find the records of the LMDB files of a folder, in chunks.

    ``data_log.0000.txt`` is the log of ``data.0000.lmdb``, and so on: one line per record, in the
    order of the keys, with its origin. Logs as fairchem writes them, ``random1234,frame56``, never
    have the word md; if no line of a folder has it, the user has to give `md`.

    Args:
        folder: with ``*.lmdb``.
        logs: the folder of the logs; by default `folder`.
        md: for all records; None: as the logs say.
        refuse: called with a file that is no LMDB file, is cut off, or whose log has another
            length, and the error.

    Raises:
        ValueError: a log that is missing, or logs that never say md.
    """
    chunks = []
    told = md is not None
    for path in sorted(folder.glob("*.lmdb")):
        log = (logs or folder) / f"{path.stem.replace('data', 'data_log')}.txt"
        if not log.exists() and md is None:
            raise ValueError(
                f"{log} is missing, which tells the MD structures: or give --md yes|no"
            )
        try:
            lines = read_text(log) if log.exists() else None
            count = _count_records(path, log, lines)
        except ValueError as error:
            refuse(path, error)
            continue
        told = told or any(map(says_md, lines))
        file, text = make_source(path, path.stem), lines and make_source(log, log.stem)
        for start in range(0, count, CHUNK):
            chunks.append(LmdbRecords(file, text, start, min(start + CHUNK, count), md))
    if chunks and not told:
        raise ValueError(
            f"{logs or folder}: no line of its data_log files says md, so they may not tell it: "
            "give --md yes|no"
        )
    return chunks


def _count_records(path: Path, log: Path, lines: list[str] | None) -> int:
    with open_lmdb(path) as environment, environment.begin() as records:
        count = count_records(records, path)
    if lines is not None and len(lines) != count:
        raise ValueError(f"{log}: expected a line for each of {count} records, got {len(lines)}")
    return count
