"""``dens data qm9``: convert the equilibrium structures of QM9, without labels.

QM9 (Ramakrishnan et al., Sci. Data 1, 140022, 2014, doi:10.1038/sdata.2014.22) is an archive of one
file for each molecule, ``dsgdb9nsd_000001.xyz``: the number of atoms; ``gdb``, the index and
properties; element, position (Å) and charge of each atom; frequencies; two SMILES, of GDB-17 and of
the relaxed structure; two InChI. Small numbers are written as ``1.2*^-6``.

The reader was tested on small files of this layout, not on the published ones.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from ase.data import atomic_numbers

from dens.data.convert.command_line import DataCommand
from dens.data.equilibria.molecule_set import MoleculeSet, split_options, write_molecules
from dens.data.sources.ase import naming_file

PUBLISHED = {"train": 55_000, "val": 10_000, "test": 10_000}  # MoreRed (arXiv:2404.10935)
_ROW = re.compile(r"^\s*(\d+)\s+(?!compounds)\S", re.MULTILINE)
_TOTAL = re.compile(r"^\s*(\d+) compounds", re.MULTILINE)


def read_qm9(source: Path, uncharacterized: set[int]) -> MoleculeSet:
    """Read QM9, or another set in its form.

    Args:
        source: the archive, packed in any way or not, or a folder of ``.xyz``.
        uncharacterized: indices of molecules to leave out, see `read_uncharacterized`.

    Raises:
        ValueError: neither, a file in another form, or a molecule that is there twice; names it.
    """
    found, dropped, seen = MoleculeSet(), 0, set()
    for name, text in _read_files(source):
        try:
            index, structure, smiles = parse_molecule(text)
            if index in seen:
                raise ValueError(f"molecule {index} is there twice")
        except ValueError as error:
            raise ValueError(f"{source}, {name}: {error}") from error
        seen.add(index)
        if index in uncharacterized:
            dropped += 1
        else:
            found.add(*structure, index, smiles)
    if not found.structures:
        raise ValueError(f"{source}: expected files of molecules (.xyz), found none")
    if uncharacterized:
        found.left_out.append(
            f"{dropped} structures of the {len(uncharacterized)} listed as uncharacterized: "
            "left out"
        )
    return found


def parse_molecule(text: str) -> tuple[int, tuple[np.ndarray, np.ndarray], str]:
    """Parse the file of a molecule: index, atomic numbers and positions, SMILES of the relaxed one.

    Raises:
        ValueError: another form.
    """
    lines = text.replace("*^", "e").splitlines()
    try:
        count = int(lines[0])
        tag, index = lines[1].split()[:2]
        rows = [line.split() for line in lines[2 : 2 + count]]
        pos = np.array([row[1:4] for row in rows], dtype=float).reshape(count, 3)
        smiles = lines[3 + count].split()[-1]
        if tag != "gdb" or {len(row) for row in rows} != {5}:
            raise ValueError
        numbers = np.array([atomic_numbers[row[0]] for row in rows])
        return int(index), (numbers, pos), smiles
    except (ValueError, IndexError, KeyError):
        raise ValueError(
            "expected a number of atoms, 'gdb' with an index, five columns for each atom, "
            "frequencies and SMILES, as QM9 has them"
        ) from None


def read_uncharacterized(path: Path) -> set[int]:
    """Read the list of molecules that failed the consistency check: lines that begin with an index.

    Raises:
        ValueError: no such lines, or not as many as its last line says.
    """
    with naming_file(path):
        text = path.read_text(encoding="utf-8")
        found = [int(index) for index in _ROW.findall(text)]
        total = _TOTAL.search(text)
        if not found or (total and int(total[1]) != len(found)):
            expected = f"{total[1]} lines" if total else "lines"
            raise ValueError(f"expected {expected} that begin with an index, got {len(found)}")
    return set(found)


def _read_files(source: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file."""
    if source.is_dir():
        for path in sorted(source.glob("*.xyz")):
            yield path.name, path.read_text(encoding="utf-8")
        return
    try:
        with tarfile.open(source, "r|*") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".xyz"):
                    yield member.name, archive.extractfile(member).read().decode()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{source}: expected a tar archive or a folder: {error}") from error


@click.command("qm9", cls=DataCommand)
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--uncharacterized",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The published list uncharacterized.txt: left out.",
)
@split_options(PUBLISHED)
def qm9_command(source, uncharacterized, out, seed, **sizes) -> None:
    """Convert QM9's equilibria to LMDB.

    Structures are stored without labels, to learn relaxation from.

    SOURCE is its archive dsgdb9nsd.xyz.tar.bz2, or a folder of its .xyz files. By default 55000
    molecules are for training, 10000 each for validation and testing; no SMILES is in two splits.
    """
    if out.exists():
        raise ValueError(f"{out} already exists: remove it or choose another output folder")
    listed = read_uncharacterized(uncharacterized) if uncharacterized else set()
    molecules = read_qm9(source, listed)
    if uncharacterized is None:
        molecules.left_out.append(
            "no --uncharacterized uncharacterized.txt: molecules that failed the consistency check "
            "are kept"
        )
    origin = {"sources": [source.name]}
    lines = write_molecules(out, "qm9", molecules, sizes, PUBLISHED, seed, origin)
    for line in lines:
        click.echo(line)
