"""Test sources that hold many systems: ``.npz`` with cells, databases, DeePMD-kit's folders."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from helpers.converted import convert, refused
from helpers.labelled import molecules, slabs
from helpers.program import run_data

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.store.folders import LmdbFolder

CELL = np.array([[4.0, 0.5, 0], [0, 5, 0], [0.25, 0, 6]])  # rows are vectors


def write_npz(path: Path, n: int = 3, **more: object) -> None:
    """Write frames of ethanol in sGDML's layout, in eV."""
    frames = molecules(n)
    arrays = {
        "R": np.array([f.positions for f in frames]),
        "F": np.array([f.calc.results["forces"] for f in frames]),
        "E": np.array([f.calc.results["energy"] for f in frames]),
        "z": frames[0].numbers,
        "e_unit": "eV",
        "r_unit": "Ang",
    }
    np.savez(path, **{**arrays, **more})


CELLS = {
    "sGDML": {"lattice": CELL.T},
    "rows": {"cell": CELL},
    "nine numbers": {"box": CELL.reshape(9)},
    "one for each frame": {"cells": np.stack([CELL] * 3), "pbc": np.ones((3, 3), bool)},
    "one for each frame, columns": {"lattice": np.stack([CELL.T] * 3), "pbc": True},
    "one for each frame, nine numbers": {"unit_cell": np.stack([CELL.reshape(9)] * 3)},
}
OPEN = {
    "pbc is false": {"cell": CELL, "pbc": np.zeros(3, bool)},
    "no cell": {"pbc": False},
    "cell of zeros": {"lattice": np.zeros((3, 3))},
}


@pytest.mark.parametrize("case", [*CELLS, *OPEN])
def test_cells_of_npz(tmp_path, case):
    write_npz(tmp_path / "a.npz", **{**CELLS, **OPEN}[case])
    records, _ = convert(tmp_path / "out", tmp_path / "a.npz")
    for record in records:
        if case in OPEN:
            assert not record.pbc.any()
            assert not record.cell.any()
        else:
            assert "pbc" not in record
            np.testing.assert_allclose(record.cell[0], CELL, rtol=1e-6)


@pytest.mark.parametrize("units", ["eV-A", "Hartree-Bohr"])
@pytest.mark.parametrize("name", ["a.npz", "a.xyz"])
def test_cells_of_md17(tmp_path, name, units):
    frames = molecules(8)
    for atoms in frames:
        atoms.set_cell(CELL)
        atoms.pbc = True
    if name == "a.npz":
        write_npz(tmp_path / name, 8, lattice=CELL.T, e_unit="eV", r_unit="Ang")
        units = "eV-A"
    else:
        ase.io.write(tmp_path / name, frames, format="extxyz")
    sizes = ["--train", 4, "--val", 2, "--units", units]
    run_data("md17", "ethanol", "--source", tmp_path / name, "--out", tmp_path / "out", *sizes)
    record = LmdbFolder(tmp_path / "out" / "train")[0]
    length = 0.52917721 if units == "Hartree-Bohr" else 1
    np.testing.assert_allclose(record.cell[0], CELL * length, rtol=1e-6)
    assert "pbc" not in record


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"lattice": np.eye(2)}, "lattice must be a cell, (3, 3), or one for each of 3 frames"),
        ({"cells": np.zeros((2, 3, 3))}, "cells must be a cell, (3, 3), or one for each of 3"),
        ({"cell": CELL, "lattice": CELL}, "expected one cell, got the keys cell, lattice"),
        ({"pbc": True}, "its pbc is [True, True, True], but it has no cell"),
        ({"cell": CELL, "pbc": np.eye(3)}, "pbc must be equal for all frames"),
    ],
)
def test_cells_that_are_none(tmp_path, arrays, message):
    write_npz(tmp_path / "a.npz", **arrays)
    assert f"{tmp_path}/a.npz: {message}" in refused(tmp_path / "out", tmp_path / "a.npz")


def test_keys_of_npz(tmp_path):
    energy, forces = np.array([3.0, 4, 5]), np.ones((3, 9, 3))
    more = {"ccsd_energy": energy, "ccsd_forces": forces, "dipole": forces[:, 0]}
    write_npz(tmp_path / "a.npz", **more, stress=np.stack([np.eye(3)] * 3), name="x", cell=CELL)
    keys = ["--energy-key", "ccsd_energy", "--forces-key", "ccsd_forces", "--stress-key", "stress"]
    records, output = convert(tmp_path / "out", tmp_path / "a.npz", *keys)
    assert [record.y for record in records] == [3, 4, 5]
    assert all((record.force == 1).all() for record in records)
    assert all(record.stress[0].tolist() == np.eye(3).tolist() for record in records)
    assert "not kept, with the number of structures: dipole (3)" in output
    _, output = convert(tmp_path / "usual", tmp_path / "a.npz")
    assert "energy was taken of structures that also have ccsd_energy (3)" in output
    assert "3 structures with stress" in output
    line = refused(tmp_path / "none", tmp_path / "a.npz", "--energy-key", "mp2")
    assert line.endswith("ccsd_energy, ccsd_forces, dipole, stress, name, cell (no mp2)")


def write_database(path: Path, n: int = 3, place: str = "results") -> list[Atoms]:
    """Write slabs with the labels in the results, the key-value pairs and data, or only the data"""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = slabs(n)
    with ase.db.connect(path) as database:
        for i, atoms in enumerate(frames):
            results = atoms.calc.results
            labels = {"forces": results["forces"], "energy": [results["energy"]]}
            atoms = atoms.copy() if place != "results" else atoms
            pairs = {"system": f"s{i % 2}", "converged": i != 1}
            if place == "pairs":
                pairs["dft_energy"], labels = results["energy"], {"dft_forces": results["forces"]}
            database.write(atoms, data={} if place == "results" else labels, **pairs)
    return frames


@pytest.mark.parametrize("suffix", ["db", "json"])
@pytest.mark.parametrize(
    ("place", "keys"),
    [
        ("results", []),
        ("pairs", ["--energy-key", "dft_energy", "--forces-key", "dft_forces"]),
        ("data", ["--energy-key", "energy", "--forces-key", "forces"]),
    ],
)
def test_databases(tmp_path, suffix, place, keys):
    frames = write_database(tmp_path / f"a.{suffix}", place=place)
    options = ["--split", "by-system", "--fractions", "all=1", "--group-key", "system"]
    options += ["--keep-unconverged", *keys]
    records, _ = convert(tmp_path / "all", tmp_path / f"a.{suffix}", *options, split="all")
    assert [record.sid for record in records] == ["s0", "s1", "s0"]
    energies = [atoms.calc.results["energy"] for atoms in frames]
    assert [record.y for record in records] == pytest.approx(energies)
    for atoms, record in zip(frames, records, strict=True):
        np.testing.assert_allclose(record.force, atoms.calc.results["forces"], atol=1e-6)
        assert record.fixed.sum() == 3
    records, output = convert(tmp_path / "out", tmp_path / f"a.{suffix}", *keys)
    assert [record.fid for record in records] == [0, 2]
    assert "1 structures, whose electronic steps did not converge, are left out" in output
    if keys:
        line = refused(tmp_path / "none", tmp_path / f"a.{suffix}")
        assert line.endswith(f"takes other keys with {' '.join(keys)}")


def test_folders_of_databases(tmp_path):
    for name in ("in/a.db", "in/b/c.db", "in/d.json", "e.db"):
        write_database(tmp_path / name)
    (tmp_path / "in" / "settings.json").write_text(json.dumps({"1": 2}))
    records, output = convert(tmp_path / "out", tmp_path / "in", tmp_path / "e.db")
    sids = [record.sid for record in records]
    assert sids == [sid for sid in ("in/a", "in/b/c", "in/d", "e") for _ in range(2)]
    assert f"{tmp_path}/in: taken 2 db, 1 json" in output
    assert "left out, since folders are searched for other kinds: 1 .json; name files" in output


@pytest.mark.parametrize(
    ("energy", "length", "factor"),
    [("eV", "Ang", 1), ("kcal/mol", "Angstrom", 0.0433641), ("Hartree", "Bohr", 27.211386)],
)
def test_units_of_schnetpack(tmp_path, energy, length, factor):
    frames = write_database(tmp_path / "a.db", place="data")
    with ase.db.connect(tmp_path / "a.db") as database:
        database.metadata = {
            "_property_unit_dict": {"energy": energy, "forces": f"{energy}/{length}"},
            "_distance_unit": length,
        }
    keys = ["--energy-key", "energy", "--forces-key", "forces"]
    records, _ = convert(tmp_path / "out", tmp_path / "a.db", *keys)
    assert records[0].y == pytest.approx(frames[0].calc.results["energy"] * factor, rel=1e-6)


def test_aselmdb(tmp_path):
    pytest.importorskip("ase_db_backends")
    frames = write_database(tmp_path / "in" / "a.aselmdb")
    records, _ = convert(tmp_path / "out", tmp_path / "in")
    assert [r.y for r in records] == [frames[i].calc.results["energy"] for i in (0, 2)]


def periodic(n: int) -> list[Atoms]:
    """Make frames of a crystal with energy, forces and stress."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(n):
        atoms = bulk("NaCl", "rocksalt", 5.6, cubic=True)
        atoms.rattle(0.1, rng=rng)
        labels = {"energy": rng.normal(), "forces": rng.normal(size=(8, 3))}
        atoms.calc = SinglePointCalculator(atoms, **labels, stress=rng.normal(size=6))
        frames.append(atoms)
    return frames


def write_deepmd(folder: Path, frames: list[Atoms]) -> None:
    """Write a system of DeePMD-kit in its npy format."""
    numbers = frames[0].numbers
    types = sorted(set(numbers.tolist()))
    names = [Atoms([z]).get_chemical_formula() for z in types]
    (folder / "set.000").mkdir(parents=True)
    np.savetxt(folder / "type.raw", [types.index(z) for z in numbers], fmt="%d")
    (folder / "type_map.raw").write_text("\n".join(names) + "\n")
    stress = [a.get_stress(voigt=False) for a in frames]
    arrays = {
        "coord": [a.positions.ravel() for a in frames],
        "box": [a.cell.array.ravel() for a in frames],
        "energy": [a.calc.results["energy"] for a in frames],
        "force": [a.calc.results["forces"].ravel() for a in frames],
        "virial": [(-s * a.get_volume()).ravel() for s, a in zip(stress, frames, strict=True)],
    }
    for name, values in arrays.items():
        np.save(folder / "set.000" / f"{name}.npy", np.array(values))


@pytest.mark.parametrize("mixed", [False, True], ids=["one formula", "mixed types"])
@pytest.mark.parametrize("path", ["in", "in/water"])
def test_deepmd(tmp_path, path, mixed):
    pytest.importorskip("dpdata")
    frames = periodic(3)
    write_deepmd(tmp_path / "in" / "water", frames)
    if mixed:
        import dpdata

        system = dpdata.LabeledSystem(tmp_path / "in" / "water", fmt="deepmd/npy")
        shutil.rmtree(tmp_path / "in")
        system.to("deepmd/npy/mixed", tmp_path / "in" / "water")
    records, output = convert(tmp_path / "out", tmp_path / path)
    for atoms, record in zip(frames, records, strict=True):
        assert record.y == pytest.approx(atoms.calc.results["energy"])
        assert record.sid == "water"
        assert record.atomic_numbers.tolist() == atoms.numbers.tolist()
        np.testing.assert_allclose(record.force, atoms.calc.results["forces"], atol=1e-6)
        np.testing.assert_allclose(record.stress[0], atoms.get_stress(voigt=False), atol=1e-6)
    assert "left out" not in output
    assert ("taken 1 deepmd" in output) == (path == "in")


def test_missing_package_is_named(tmp_path, monkeypatch):
    write_deepmd(tmp_path / "in", periodic(2))
    monkeypatch.setitem(sys.modules, "dpdata", None)
    assert refused(tmp_path / "out", tmp_path / "in").endswith(
        "reading it needs the package dpdata: pip install fairchem-dens[formats]"
    )
