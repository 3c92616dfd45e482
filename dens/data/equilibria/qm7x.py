"""``dens data qm7x``: convert the equilibrium structures of QM7-X, without labels.

QM7-X (Hoja et al., Sci. Data 8, 43, 2021, doi:10.1038/s41597-021-00812-2) consists of eight HDF5
files, ``1000.xz`` to ``8000.xz``. A group for each molecule holds a group for each conformation,
with atomic numbers ``atNUM`` and positions ``atXYZ`` (Å); ``Geom-m12-i1-c3-opt`` is an equilibrium
of DFTB3+MBD: molecule 12, isomer 1, conformer 3. A molecule is one SMILES.

The reader was tested on small files of this layout, not on the published ones.
"""

from __future__ import annotations

import lzma
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from dens.data.convert.command_line import DataCommand
from dens.data.equilibria.molecule_set import MoleculeSet, split_options, write_molecules
from dens.data.sources.ase import naming_file

PUBLISHED = {"train": 4500, "val": 1250}  # molecules; MoreRed (arXiv:2404.10935)
_SUFFIXES = (".hdf5", ".h5", ".xz")  # unpacked first
_NAME = re.compile(r"(?:Geom-)?(m\d+-i\d+-c\d+)-opt")


def read_qm7x(
    files: list[Path],
    duplicates: set[str],
    say: Callable[[str], None] = lambda line: None,
) -> MoleculeSet:
    """Read the equilibrium structures of QM7-X.

    Args:
        files: HDF5 files, or such files packed as ``.xz``.
        duplicates: names of conformations to leave out, see `read_duplicates`.
        say: takes a line before each file is read, which may take minutes.

    Raises:
        ValueError: not such a file, a conformation without ``atXYZ`` or ``atNUM``, or one that is
            there twice; names file and conformation.
    """
    found, others, dropped = MoleculeSet(), 0, 0
    for path in files:
        say(f"reading {path}")
        with naming_file(path), _open(path) as file:
            for molecule in file:
                for name in file[molecule]:
                    match = _NAME.fullmatch(name)
                    if match is None:
                        others += 1
                    elif match[1] in duplicates:
                        dropped += 1
                    else:
                        structure = _read_structure(name, file[molecule][name])
                        found.add(*structure, match[1], molecule)
    if not found.structures:
        raise ValueError(
            f"{', '.join(map(str, files))}: expected conformations whose names end in -opt, got "
            f"none among {others + dropped}"
        )
    twice = len(found.sids) - len(set(found.sids))
    if twice:
        raise ValueError(f"expected each conformation once, got {twice} twice: is a file doubled?")
    if others:
        found.left_out.append(f"{others} conformations are not at equilibrium: left out")
    if duplicates:
        found.left_out.append(
            f"{dropped} structures of the {len(duplicates)} listed as duplicates: left out"
        )
    return found


def find_files(sources: Sequence[Path]) -> list[Path]:
    """List the files given, and those of folders, sorted; where a folder has one both packed and
    not, the latter.

    Raises:
        ValueError: a path that does not exist, or a folder without such files.
    """
    found: list[Path] = []
    for path in sources:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        inside: dict[str, Path] = {}
        for suffix in _SUFFIXES:
            for file in path.glob(f"*{suffix}"):
                inside.setdefault(file.name.split(".")[0], file)
        if path.is_dir() and not inside:
            raise ValueError(f"{path}: expected files {', '.join(_SUFFIXES)}, found none")
        found += sorted(inside.values()) if path.is_dir() else [path]
    return found


def read_duplicates(path: Path) -> set[str]:
    """Read the list of duplicates, one name like ``Geom-m12-i1-c3-opt`` in a line.

    Raises:
        ValueError: a line that is no such name.
    """
    names = set()
    with naming_file(path):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            match = _NAME.fullmatch(line.strip())
            if match:
                names.add(match[1])
            elif line.strip():
                raise ValueError(
                    f"line {number}: expected a name like Geom-m12-i1-c3-opt, got {line[:40]!r}"
                )
    return names


def _read_structure(name: str, group: Any) -> tuple[np.ndarray, np.ndarray]:
    lacking = [key for key in ("atXYZ", "atNUM") if key not in group]
    if lacking:
        raise ValueError(f"{name}: expected atXYZ and atNUM, got {', '.join(group)}")
    numbers, pos = np.array(group["atNUM"], dtype=int), np.array(group["atXYZ"], dtype=float)
    if pos.shape != (len(numbers), 3):
        raise ValueError(f"{name}: atXYZ must be ({len(numbers)}, 3), got shape {pos.shape}")
    return numbers, pos


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open an HDF5 file; a packed one is unpacked into a temporary file first."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise ValueError(
            "reading it needs the package h5py: pip install 'fairchem-dens[qm7x]'"
        ) from None
    if path.suffix != ".xz":
        with h5py.File(path, "r") as file:
            yield file
        return
    with tempfile.NamedTemporaryFile(suffix=".hdf5") as unpacked:
        with lzma.open(path) as packed:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        unpacked.flush()
        with h5py.File(unpacked.name, "r") as file:
            yield file


@click.command("qm7x", cls=DataCommand)
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--duplicates",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The published list DupMols.dat: left out.",
)
@split_options(PUBLISHED)
def qm7x_command(sources, duplicates, out, seed, **sizes) -> None:
    """Convert QM7-X's equilibria to LMDB.

    Structures are stored without labels, to learn relaxation from.

    SOURCES are its HDF5 files, packed (1000.xz) or not, or a folder of them; packed ones need room
    for an unpacked one in the folder for temporary files. All isomers and
    conformers of a molecule go to one split: by default 4500 molecules are for training, 1250 for
    validation and the rest for testing.
    """
    if out.exists():
        raise ValueError(f"{out} already exists: remove it or choose another output folder")
    files = find_files(sources)
    listed = read_duplicates(duplicates) if duplicates else set()
    molecules = read_qm7x(files, listed, lambda line: click.echo(line, err=True))
    if duplicates is None:
        molecules.left_out.append("no --duplicates DupMols.dat: duplicates are kept")
    origin = {"sources": [path.name for path in files]}
    lines = write_molecules(out, "qm7x", molecules, sizes, PUBLISHED, seed, origin)
    for line in lines:
        click.echo(line)
