"""Write small files in the layouts of published sets of equilibrium molecules, and of pairs."""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import molecule

UNCHARACTERIZED = """\
================================================================================
= Molecules of GDB9 that failed the consistency check =
================================================================================

  Index   InChI of input   InChI of relaxed structure

{rows}
{count} compounds
"""
NAMES = ("H2O", "CH4", "NH3", "C2H6", "CH3OH", "CH3CH2OH")


def equilibria(n: int) -> list[Atoms]:
    """Make unlabelled molecules of different sizes, no two of them alike."""
    found = [molecule(NAMES[i % len(NAMES)]) for i in range(n)]
    for i, atoms in enumerate(found):
        atoms.rattle(0.01, seed=i)
    return found


def moved(structures: Sequence[Atoms], by: float = 0.1) -> list[Atoms]:
    """Copy structures with other positions, without labels."""
    found = [atoms.copy() for atoms in structures]
    for i, atoms in enumerate(found):
        atoms.positions += np.random.default_rng(i).normal(scale=by, size=(len(atoms), 3))
    return found


def write_molecules(path: Path, structures: Sequence[Atoms], **arrays: np.ndarray) -> None:
    """Write an ``.npz`` of many molecules."""
    arrays = {
        "natoms": np.array([len(atoms) for atoms in structures], np.int32),
        "z": np.concatenate([atoms.numbers for atoms in structures]).astype(np.uint8),
        "pos": np.concatenate([atoms.positions for atoms in structures]).astype(np.float32),
        **arrays,
    }
    np.savez(path, **arrays)


def write_qm7x(path: Path, molecules: Mapping[str, Mapping[str, Atoms]]) -> None:
    """Write a file of QM7-X: conformations by name, by molecule; packed if it ends in .xz."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, conformations in molecules.items():
            for conformation, atoms in conformations.items():
                group = file.create_group(f"{name}/{conformation}")
                group["atNUM"], group["atXYZ"] = atoms.numbers, atoms.positions
                group["ePBE0+MBD"] = [-1.0]
    data = buffer.getvalue()
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)


def qm9_text(atoms: Atoms, index: int, smiles: str) -> str:
    """Format a molecule like QM9, with one of its odd exponents."""
    rows = [
        f"{symbol}\t{x:.10f}\t{y:.10f}\t{z:.10f}\t-1.5*^-6"
        for symbol, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)
    ]
    rows[0] = "\t".join([*rows[0].split("\t")[:1], "6.2*^-6", *rows[0].split("\t")[2:]])
    properties = "\t".join(["1.5"] * 15)
    head = [str(len(atoms)), f"gdb {index}\t{properties}\t"]
    tail = ["1341.307\t1341.3284", f"X\t{smiles}\t", "InChI=1S/X\tInChI=1S/X"]
    return "\n".join([*head, *rows, *tail]) + "\n"


def write_qm9(path: Path, texts: Mapping[int, str]) -> None:
    """Write QM9's archive, or a folder of its files where the path has no suffix."""
    files = {f"dsgdb9nsd_{index:06d}.xyz": text.encode() for index, text in texts.items()}
    if not path.suffix:
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
        return
    with tarfile.open(path, "w:bz2") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def write_equilibria(folder: Path) -> None:
    """Write molecules, pairs and published sets as a reader of the documentation has them."""
    frames = equilibria(12)
    smiles = np.array([f"C{i}" if i < 10 else "" for i in range(12)])
    write_molecules(folder / "molecules.npz", frames, smiles=smiles)
    more = equilibria(40)
    start = np.concatenate([atoms.positions for atoms in moved(more)]).astype(np.float32)
    names = np.array([f"C{i}" for i in range(len(more))])
    write_molecules(folder / "qm7.npz", more, smiles=names, pos_mmff94=start)
    ase.io.write(folder / "relaxed.xyz", frames, format="extxyz")
    ase.io.write(folder / "start.xyz", moved(frames), format="extxyz")
    (folder / "qm7x").mkdir()
    conformers = {f"{m}": {f"Geom-m{m}-i1-c1-opt": atoms} for m, atoms in enumerate(frames)}
    write_qm7x(folder / "qm7x/1000.xz", conformers)
    (folder / "qm7x/DupMols.dat").write_text("Geom-m3-i1-c1-opt\n")
    write_qm9(
        folder / "dsgdb9nsd.xyz.tar.bz2",
        {i: qm9_text(atoms, i, f"C{i}") for i, atoms in enumerate(frames, start=1)},
    )
    listed = UNCHARACTERIZED.format(rows="     4   InChI=1S/X   InChI=1S/Y", count=1)
    (folder / "uncharacterized.txt").write_text(listed)
