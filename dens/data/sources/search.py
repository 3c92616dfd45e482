"""Find files with labelled structures, and tell which were taken and which were left out."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ase.io.formats import get_compression

from dens.data.sources.formats.cp2k import companions, cp2k_part, has_cell, positions_of
from dens.data.sources.formats.database import is_json_database
from dens.data.sources.formats.deepmd import is_deepmd
from dens.data.sources.formats.vasp import best_of, calculation_of, is_cut, vasp_format
from dens.data.sources.reading import ReadOptions

_KINDS = {
    ".traj": "traj",
    ".xyz": "xyz",
    ".extxyz": "xyz",
    ".db": "db",
    ".aselmdb": "db",
    ".json": "json",
    ".npz": "npz",
}
_SHOWN = 8  # names or kinds in a line


@dataclass(frozen=True)
class Source:
    """One file, or folder of DeePMD-kit. ``name`` is unique among the sources and becomes the sid
    of its frames; ``size`` (bytes) and ``mtime`` (ns) show whether it changed."""

    path: str
    name: str
    size: int
    mtime: int
    kind: str
    options: ReadOptions = field(default_factory=ReadOptions)

    @property
    def is_compressed(self) -> bool:
        """Whether it ends in .xz, .gz or .bz2."""
        return get_compression(self.path)[1] is not None

    @property
    def is_read_whole(self) -> bool:
        """Whether all of it must be read for any of its frames."""
        return self.is_compressed or self.kind not in ("traj", "xyz", "cp2k", "db")


def find_kind(path: Path) -> str:
    """Tell the kind of a file.

    Returns:
        traj, xyz (extended), cp2k (positions; cp2k-frc and cp2k-vel are what belongs to them), db,
        json (a database), npz, deepmd (a folder), vasp-xml, vasp-out, or ase: any other format that
        ASE reads.
    """
    if path.is_dir():
        return "deepmd"
    name, compression = get_compression(path.name)
    kind = _KINDS.get(os.path.splitext(name)[1], "ase")
    if kind == "xyz" and (part := cp2k_part(path)) is not None:
        return "cp2k" if part in ("pos", "") else f"cp2k-{part}"
    if kind == "json" and (compression or not is_json_database(path)):
        kind = "ase"
    return (vasp_format(path) or "ase") if kind == "ase" else kind


def make_source(path: Path, name: str, options: ReadOptions | None = None) -> Source:
    """Make the source of a file, with its size and time."""
    kind = find_kind(path)
    parts = [path, *(path.rglob("*") if path.is_dir() else ())]
    parts += companions(path) if kind == "cp2k" else []
    status = [part.stat() for part in parts]
    size, time = sum(s.st_size for s in status), max(s.st_mtime_ns for s in status)
    return Source(str(path), name, size, time, kind, options or ReadOptions())


def find_sources(
    paths: Sequence[str | Path],
    options: ReadOptions | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Source]:
    """Find the files under the given paths.

    Args:
        paths: files, and folders that are searched for files of known kinds, subfolders included.
            Of the files of one calculation, vasprun.xml and OUTCAR, one is taken.
        options: how they are to be read.
        say: takes the lines that tell what was taken and left out of folders.

    Returns:
        In the order given, each folder sorted by name. Names are relative to the common folder.

    Raises:
        ValueError: a path that does not exist, a folder without such files, a file given twice.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        found += [path] if path.is_file() or is_deepmd(path) else _search(path, say)
    found = _without_parts(found)
    absolute = [Path(os.path.abspath(path)) for path in found]
    if len(set(absolute)) < len(absolute):
        twice = next(path for path in absolute if absolute.count(path) > 1)
        raise ValueError(f"{twice} is given twice")
    names = _names(absolute)
    sources = [make_source(*named, options) for named in zip(absolute, names, strict=True)]
    for source in sources:
        if source.kind == "vasp-xml" and is_cut(source.path):
            say(f"{source.path} is cut off: only its whole steps are taken")
    _describe_cp2k([source for source in sources if source.kind == "cp2k"], say)
    return sources


def _without_parts(paths: list[Path]) -> list[Path]:
    """Leave out CP2K's forces and velocities, which are no sources of their own.

    Raises:
        ValueError: the positions that belong to them are not among the paths.
    """
    given = {Path(os.path.abspath(path)) for path in paths}
    sources = []
    for path in paths:
        if not find_kind(path).startswith("cp2k-"):
            sources.append(path)
        elif Path(os.path.abspath(positions_of(path))) not in given:
            raise ValueError(
                f"{path} has no positions: name {positions_of(path).name}, with which it is read"
            )
    return sources


def _describe_cp2k(sources: list[Source], say: Callable[[str], None]) -> None:
    if not sources:
        return
    say(
        f"{len(sources)} trajectories of CP2K, whose Hartree and Hartree/Bohr become eV and eV/Å; "
        "they do not tell which steps did not converge"
    )
    without = [Path(source.path).name for source in sources if not has_cell(source.path)]
    if without:
        say(
            f"{len(without)} of them without a cell, taken as open, since no PROJECT-1.cell or "
            f"PROJECT-1.restart is beside them: {', '.join(without[:_SHOWN])}{_more(len(without))}"
        )


def _search(folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Search a folder, and say what was taken of it and what was left out."""
    systems = sorted({path.parent for path in folder.rglob("type.raw") if is_deepmd(path.parent)})
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(system in path.parents for system in systems)
    ]
    known = {path: None for path in files if _is_known(path)}  # in order
    twins = [path for path in known if _unpacked(path) in known]
    for path in twins:
        del known[path]
    calculations = defaultdict(list)
    for path in known:
        if find_kind(path).startswith("vasp"):
            calculations[calculation_of(path)].append(path)
    best = {path: best_of(group) for group in calculations.values() for path in group}
    taken = sorted([*systems, *(path for path in known if best.get(path, path) == path)])
    if not taken:
        raise ValueError(
            f"{folder}: expected files with structures ({', '.join(_KINDS)}, vasprun.xml, "
            f"OUTCAR; xyz also as .xz, .gz, .bz2), found none{_among(files)}"
        )
    kinds = Counter(find_kind(path) for path in taken)
    say(f"{folder}: taken {_listed(kinds)}")
    read = {*known, *twins, *(part for path in known for part in _parts(path))}
    others = [path for path in files if path not in read]
    for line in _describe_rest(folder, best, twins, others):
        say(line)
    return taken


def _describe_rest(
    folder: Path, best: Mapping[Path, Path], twins: Sequence[Path], others: Sequence[Path]
) -> Iterator[str]:
    """Yield a line for each kind of files that are left out.

    Args:
        best: the chosen file of the calculation of each of VASP's files.
        twins: packed files beside unpacked ones.
        others: files of other kinds.
    """
    doubles = [_double(path, chosen, folder) for path, chosen in best.items() if path != chosen]
    if doubles:
        yield (
            f"{folder}: left out, since another file has the same calculation: "
            f"{', '.join(doubles[:_SHOWN])}{_more(len(doubles))}"
        )
    if twins:
        names = ", ".join(str(path.relative_to(folder)) for path in twins[:_SHOWN])
        yield (
            f"{folder}: left out, since the unpacked file lies beside it: {names}"
            f"{_more(len(twins))}"
        )
    if others:
        yield (
            f"{folder}: left out, since folders are searched for other kinds: "
            f"{_listed(Counter(map(_kind_name, others)))}; name files with structures one by one"
        )


def _unpacked(path: Path) -> Path | None:
    """Return the name that a packed file of frames has when it is unpacked, None for others."""
    name, compression = get_compression(path.name)
    # one of VASP's files is chosen with more care
    return path.with_name(name) if compression and find_kind(path) in ("xyz", "cp2k") else None


def _parts(path: Path) -> list[Path]:
    return companions(path) if find_kind(path) == "cp2k" else []


def _double(path: Path, chosen: Path, folder: Path) -> str:
    cut = "cut off, " if find_kind(path) == "vasp-xml" and is_cut(path) else ""
    return f"{path.relative_to(folder)} ({cut}as {chosen.name})"


def _is_known(path: Path) -> bool:
    kind = find_kind(path)
    packed = get_compression(path.name)[1] is not None
    if kind == "ase" or kind.startswith("cp2k-"):
        return False
    return not packed or kind in ("xyz", "cp2k", "vasp-xml", "vasp-out")


def _kind_name(path: Path) -> str:
    suffix = "".join(path.suffixes[-2:] if get_compression(path.name)[1] else path.suffixes[-1:])
    return suffix or path.name


def _listed(kinds: Counter) -> str:
    parts = [f"{count} {kind}" for kind, count in kinds.most_common(_SHOWN)]
    return ", ".join(parts) + _more(len(kinds))


def _more(count: int) -> str:
    return f" and {count - _SHOWN} more" if count > _SHOWN else ""


def _among(files: list[Path]) -> str:
    return f" among {_listed(Counter(map(_kind_name, files)))}" if files else ""


def _names(paths: list[Path]) -> list[str]:
    """Name the files uniquely, without suffixes where that is enough to tell them apart."""
    root = os.path.commonpath([path.parent for path in paths])
    full = [os.path.relpath(path, root) for path in paths]
    short = [os.path.join(os.path.dirname(n), os.path.basename(n).split(".")[0]) for n in full]
    return short if len(set(short)) == len(short) else full
