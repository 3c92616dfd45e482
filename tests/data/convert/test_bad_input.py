"""Test that bad input gives one clear line of error and leaves no data set behind."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from helpers.labelled import molecules, slabs, write_oc20, write_traj, write_vasprun
from helpers.program import refused_data

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)

CASES: dict[str, tuple[Callable[[Path], list], str]] = {}


def case(name: str, message: str):
    """Register a case: a function that makes the input in a folder and returns the arguments."""

    def add(make: Callable[[Path], list]) -> Callable[[Path], list]:
        CASES[name] = (make, message)
        return make

    return add


def changed(change: Callable[[Atoms], object], name: str = "a.traj") -> Callable[[Path], list]:
    """Convert three frames after changing the last one."""

    def make(path: Path) -> list:
        frames = slabs(3)
        change(frames[2])
        if frames[2].calc is not None:
            frames[2].calc.atoms = frames[2].copy()  # or ASE finds the labels out of date
        ase.io.write(path / name, frames)
        return ["convert", path / name]

    return make


def options(*more: object) -> Callable[[Path], list]:
    """Convert good frames with bad options, in which ``PATH`` is the folder."""

    def make(path: Path) -> list:
        write_traj(path / "a.traj", 5)
        return ["convert", path / "a.traj", *(str(m).replace("PATH", str(path)) for m in more)]

    return make


def set_results(**results: object) -> Callable[[Atoms], None]:
    return lambda atoms: atoms.calc.results.update(results)


def nan_force(atoms: Atoms) -> None:
    atoms.calc.results["forces"][4, 1] = np.nan


LAST = "PATH/a.traj, frame 2: "
SAYS_ID = "structure sid=a fid=2: "
for name, change, message in (
    ("no energy", lambda a: a.calc.results.pop("energy"), "expected energy and forces, got only"),
    ("no forces", lambda a: a.calc.results.pop("forces"), "expected energy and forces, got only"),
    ("no labels", lambda a: setattr(a, "calc", None), "expected energy and forces, got only"),
    ("NaN force", nan_force, SAYS_ID + "forces must be finite, got NaN or infinity"),
    ("infinite energy", set_results(energy=np.inf), SAYS_ID + "energy must be finite, got inf"),
    (
        "infinite position",  # ASE writes no labels for one that is NaN
        lambda a: a.positions.__setitem__((0, 0), np.inf),
        SAYS_ID + "positions must be finite, got NaN or infinity",
    ),
    (
        "zero cell with pbc",
        lambda a: a.set_cell(np.zeros((3, 3))),
        SAYS_ID + "expected pbc in all three directions and a cell with a volume",
    ),
    (
        "periodic in two directions",
        lambda a: a.set_pbc((True, True, False)),
        SAYS_ID + "expected pbc in all three directions and a cell with a volume",
    ),
    (
        "dummy atom",
        lambda a: a.numbers.__setitem__(3, 0),
        SAYS_ID + "atomic_numbers must be 1 to 118, got 0",
    ),
    (
        "no free atom",
        lambda a: a.set_constraint(FixAtoms(range(10))),
        "expected at least one free atom, but all 10 are fixed",
    ),
    (
        "energies in Hartree",
        set_results(energy=-15_076.0),
        "the energy -15076 is that of all electrons in Hartree-Bohr, not in eV: "
        "give --units Hartree-Bohr, or --units eV-A if it is right as it is",
    ),
):
    case(name, LAST + message)(changed(change))

for name, arguments, message in (
    ("unknown units", ["--units", "furlong"], "units must be one of eV-A, kcal/mol, meV"),
    (
        "fractions that are none",
        ["--split", "by-block", "--fractions", "train,val"],
        "fractions must be like train=0.8,val=0.2, with positive numbers, got 'train,val'",
    ),
    (
        "fractions that do not add up",
        ["--split", "by-block", "--fractions", "train=0.5,val=0.2"],
        "fractions must add up to 1, got 'train=0.5,val=0.2'",
    ),
    (
        "empty split",
        ["--split", "by-system"],
        "split val is empty: 0.1 of 1 systems is none",
    ),
    ("split emptied by a limit", ["--max-force", "1e-6"], "the output is empty: all of its 5"),
    ("missing index file", ["--index", "train=PATH/none.txt"], "PATH/none.txt: expected frame"),
    (
        "no such key",
        ["--split", "by-system", "--group-key", "id"],
        "frame 0: expected the key 'id'",
    ),
    ("missing references", ["--references", "PATH/none.npz"], "PATH/none.npz: expected an .npz"),
    ("limit without cutoff", ["--max-neighbors", "20"], "--max-neighbors needs --cutoff"),
):
    case(name, message)(options(*arguments))


@case("missing source", "PATH/none.traj does not exist")
def _(path: Path) -> list:
    return ["convert", path / "none.traj"]


@case("folder without structures", "PATH/in: expected files with structures (")
def _(path: Path) -> list:
    (path / "in").mkdir()
    (path / "in" / "notes.txt").touch()
    return ["convert", path / "in"]


@case("source given twice", "PATH/a.traj is given twice")
def _(path: Path) -> list:
    write_traj(path / "a.traj")
    return ["convert", path / "a.traj", path / "a.traj"]


@case("empty file", "PATH/a.extxyz: expected structures, got an empty file")
def _(path: Path) -> list:
    (path / "a.extxyz").touch()
    return ["convert", path / "a.extxyz"]


@case("cut off trajectory", "PATH/a.traj: ")
def _(path: Path) -> list:
    write_traj(path / "a.traj")
    raw = (path / "a.traj").read_bytes()
    (path / "a.traj").write_bytes(raw[: len(raw) // 2])
    return ["convert", path / "a.traj"]


@case("cut off xyz", "PATH/a.extxyz: frame 1 is cut off after 4 lines")
def _(path: Path) -> list:
    ase.io.write(path / "a.extxyz", slabs(2))
    lines = (path / "a.extxyz").read_text().splitlines(keepends=True)
    (path / "a.extxyz").write_text("".join(lines[: 12 + 5]))
    return ["convert", path / "a.extxyz"]


@case("cut off packed file", "PATH/a.extxyz.xz: EOFError: Compressed file ended")
def _(path: Path) -> list:
    ase.io.write(path / "a.extxyz", slabs(20))
    raw = lzma.compress((path / "a.extxyz").read_bytes())
    (path / "a.extxyz.xz").write_bytes(raw[: len(raw) // 2])
    return ["convert", path / "a.extxyz.xz"]


@case("no database", "PATH/a.db: expected an SQLite database as ASE writes it")
def _(path: Path) -> list:
    (path / "a.db").touch()
    return ["convert", path / "a.db"]


@case("unknown element", "PATH/a.extxyz, frame 0: 'Zz' is no element")
def _(path: Path) -> list:
    ase.io.write(path / "a.extxyz", slabs(1))
    text = (path / "a.extxyz").read_text().replace("O ", "Zz", 1)
    (path / "a.extxyz").write_text(text)
    return ["convert", path / "a.extxyz"]


@case("plain xyz", "PATH/a.xyz, frame 0: expected energy and forces, got only")
def _(path: Path) -> list:
    ase.io.write(path / "a.xyz", molecules(1), format="xyz")
    return ["convert", path / "a.xyz"]


def write_npz(path: Path, **more: np.ndarray) -> None:
    frames = molecules(3)
    arrays = {
        "R": np.array([f.positions for f in frames]),
        "F": np.array([f.calc.results["forces"] for f in frames]),
        "E": np.array([f.calc.results["energy"] for f in frames]),
        "z": frames[0].numbers,
    }
    np.savez(path, **{**arrays, **more})


@case("npz without units", "PATH/a.npz: an .npz does not tell its units: give --units")
def _(path: Path) -> list:
    write_npz(path / "a.npz")
    return ["convert", path / "a.npz"]


@case("npz of mixed molecules", "PATH/a.npz: expected the same atoms in every frame")
def _(path: Path) -> list:
    numbers = np.tile(molecules(1)[0].numbers, (3, 1))
    numbers[1] = numbers[1, ::-1]
    write_npz(path / "a.npz", z=numbers)
    return ["convert", path / "a.npz", "--units", "kcal/mol"]


@case("npz with an atom too few", "PATH/a.npz: expected positions and forces (3, 8, 3)")
def _(path: Path) -> list:
    write_npz(path / "a.npz", z=molecules(1)[0].numbers[:-1])
    return ["convert", path / "a.npz", "--units", "kcal/mol"]


@case("VASP in kcal/mol", "PATH/vasprun.xml: its units are eV-A, but --units says kcal/mol")
def _(path: Path) -> list:
    write_vasprun(path / "vasprun.xml")
    return ["convert", path / "vasprun.xml", "--units", "kcal/mol"]


@case("open and periodic", "expected structures with periodic boundaries or without, got 5 with")
def _(path: Path) -> list:
    write_traj(path / "a.traj")
    ase.io.write(path / "b.traj", molecules(2))
    return ["convert", path / "a.traj", path / "b.traj"]


@case("element without reference", "PATH/b.traj, frame 0: no reference energy for Au in the fit to")
def _(path: Path) -> list:
    write_traj(path / "a.traj")
    write_traj(path / "b.traj", metal="Au")
    (path / "train.txt").write_text("0 1 2 3 4")
    (path / "val.txt").write_text("5")
    index = ["--index", f"train={path}/train.txt", "--index", f"val={path}/val.txt"]
    return ["convert", path / "a.traj", path / "b.traj", "--references", "fit", *index]


@case("junk reference", "PATH/a.traj, frame 0: no reference energy for O in PATH/ref.npz")
def _(path: Path) -> list:
    write_traj(path / "a.traj")
    coeff = np.ones(100)
    coeff[8] = -4.9e11
    np.savez(path / "ref.npz", coeff=coeff)
    return ["convert", path / "a.traj", "--references", path / "ref.npz"]


@case("frame in two splits", "frame 2 is in both splits, train and val")
def _(path: Path) -> list:
    (path / "a.txt").write_text("0 1 2")
    (path / "b.txt").write_text("2 3")
    return [*options()(path), "--index", f"train={path}/a.txt", "--index", f"val={path}/b.txt"]


@case("frame number too large", "PATH/a.txt: frame numbers must be in 0 .. 4, got 5")
def _(path: Path) -> list:
    (path / "a.txt").write_text("0 5")
    return [*options()(path), "--index", f"train={path}/a.txt"]


@case("split said twice", "--split and --index are two ways to say the same: give one")
def _(path: Path) -> list:
    return [*options()(path), "--split", "by-block", "--index", "train=x"]


@case("OC20 without text", "PATH/in/0.txt is missing: expected 0.extxyz and 0.txt")
def _(path: Path) -> list:
    write_oc20(path / "in", 0, slabs(1), ["random1,frame0,-1"])
    (path / "in" / "0.txt").unlink()
    return ["oc20", path / "in"]


@case("OC20 text cut off", "PATH/in/0.txt: expected a line for each of the 2 frames of 0.extxyz")
def _(path: Path) -> list:
    write_oc20(path / "in", 0, slabs(2), ["random1,frame0,-1"])
    return ["oc20", path / "in"]


@case("OC20 text of another kind", "PATH/in/0.txt, line 2: expected a line like random1234,frame5")
def _(path: Path) -> list:
    write_oc20(path / "in", 0, slabs(2), ["random1,frame0,-1", "random1,frame1,low"])
    return ["oc20", path / "in"]


@case("OC20 without references", "PATH/in/0.extxyz, frame 0: expected a reference energy in its")
def _(path: Path) -> list:
    write_oc20(path / "in", 0, slabs(1), ["random1,frame0"])
    return ["oc20", path / "in", "--ref-energy"]


@case("OC20 test data", "PATH/in/0.extxyz, frame 0: expected energy and forces, got only")
def _(path: Path) -> list:
    frames = slabs(1)
    frames[0].calc = None
    write_oc20(path / "in", 0, frames, ["random1,frame0"])
    return ["oc20", path / "in"]


@case("OC20 in an empty folder", "PATH: expected *.extxyz and *.txt (or .xz), or *.lmdb, found")
def _(path: Path) -> list:
    return ["oc20", path]


@case("LMDB that is none", "PATH/data.0000.lmdb: not an LMDB file: ")
def _(path: Path) -> list:
    (path / "data.0000.lmdb").write_bytes(b"x" * 9000)
    return ["oc20", path, "--md", "no"]


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_no_output(tmp_path, name):
    make, message = CASES[name]
    source, out = tmp_path / "source", tmp_path / "target" / "out"
    source.mkdir()
    line = refused_data(*make(source), "--out", out)
    assert line.startswith(message.replace("PATH", str(source))) or (
        message.startswith("frame") and message in line
    )
    # finished shards may stay in a hidden folder, for the next run to resume
    assert not out.parent.exists() or {p.name for p in out.parent.iterdir()} <= {".out.pieces"}


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_existing_output_is_kept(tmp_path, kind):
    write_traj(tmp_path / "a.traj")
    out = tmp_path / "out"
    out.mkdir() if kind == "folder" else out.write_text("mine")
    assert refused_data("convert", tmp_path / "a.traj", "--out", out) == (
        f"{out} already exists: remove it or choose another output folder"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.traj", "out"]
