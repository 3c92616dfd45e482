"""Test ``dens data convert --labels none``: structures only, from any source."""

from __future__ import annotations

from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from helpers.equilibria import equilibria, write_molecules
from helpers.labelled import slabs
from helpers.program import refused_data as refusal
from helpers.program import run_data as run
from helpers.vasp import write_steps_xml
from helpers.written import contents, info, read

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)

NONE = ("--labels", "none")
HINT = "--labels none takes the structures alone"


def write_db(path: Path, frames: list) -> None:
    with ase.db.connect(path) as database:
        for frame in frames:
            database.write(frame)


def write_npz(path: Path, frames: list) -> None:
    """One molecule, in the layout of MD17 without its labels."""
    np.savez(path, R=[frame.positions for frame in frames], z=frames[0].numbers)


WRITERS = {
    "a.xyz": lambda path, frames: ase.io.write(path, frames, format="extxyz"),
    "a.traj": ase.io.write,
    "a.db": write_db,
    "a.json": ase.io.write,
    "a.cif": ase.io.write,
    "a.npz": write_molecules,
}


@pytest.mark.parametrize("name", WRITERS)
def test_structures_without_labels(tmp_path, name):
    """The records have the fields of others but for the labels; without the option, one line."""
    frames = equilibria(3)
    if name == "a.cif":  # knows crystals only
        frames = [frame.copy() for frame in slabs(3)]
        for frame in frames:
            frame.set_constraint()
    WRITERS[name](tmp_path / name, frames)
    units = ["--units", "eV-A"] * (name == "a.npz")
    refused = refusal("convert", tmp_path / name, *units, "--out", tmp_path / "o")
    assert "expected energy and forces, got only" in refused
    assert refused.endswith(f"; {HINT}")
    run("convert", tmp_path / name, *NONE, "--out", tmp_path / "out")
    records = read(tmp_path / "out")
    for number, (frame, record) in enumerate(zip(frames, records, strict=True)):
        assert record.atomic_numbers.tolist() == frame.numbers.tolist()
        steps = record.pos.numpy() - frame.positions
        if frame.pbc.any():
            steps = frame.cell.scaled_positions(steps)
            steps -= steps.round()
        np.testing.assert_allclose(steps, 0, atol=1e-5)
        assert (record.sid, record.fid, record.natoms) == ("a", number, len(frame))
        assert record.fixed.sum() == 0
        fields = {"pos", "cell", "atomic_numbers", "natoms", "tags", "fixed", "sid", "fid"}
        assert set(record.keys()) - {"pbc", "id"} == fields
    assert info(tmp_path / "out")["labels"] == "none"
    assert info(tmp_path / "out")["energy"] == "not kept"


def test_labels_that_are_there_are_not_kept(tmp_path):
    ase.io.write(tmp_path / "a.traj", slabs(3))
    write_steps_xml(tmp_path / "b" / "vasprun.xml", [3], 10)
    sources = (tmp_path / "a.traj", tmp_path / "b" / "vasprun.xml")
    output = run("convert", *sources, *NONE, "--out", tmp_path / "out")
    assert "not kept, with the number of structures: energy (4), forces (4)" in output
    assert "4 structures have a force above 0.05 eV/Å on a free atom: not at equilibrium?" in output
    records = read(tmp_path / "out")
    assert len(records) == 4
    assert not any(name in r for r in records for name in ("y", "force", "stress"))
    assert records[0].fixed.sum() == 3


def test_md17_layout(tmp_path):
    write_npz(tmp_path / "a.npz", [equilibria(1)[0]] * 2)
    assert refusal("convert", tmp_path / "a.npz", "--out", tmp_path / "o").endswith(
        f"got R, z (no E, F); {HINT}"
    )
    run("convert", tmp_path / "a.npz", *NONE, "--out", tmp_path / "out")
    assert len(read(tmp_path / "out")) == 2
    write_molecules(tmp_path / "many.npz", equilibria(2))
    many = ["--source", tmp_path / "many.npz", "--out", tmp_path / "o"]
    assert "expected frames of one molecule, got 2 molecules" in refusal("md17", "ethanol", *many)


@pytest.mark.parametrize(
    "option",
    [
        *("--energy free", "--energy-key e", "--forces-key f", "--stress-key s"),
        *("--energy-unit eV", "--force-unit eV/A", "--references fit", "--max-force 50"),
    ],
)
def test_options_for_labels_are_refused(tmp_path, option):
    WRITERS["a.xyz"](tmp_path / "a.xyz", equilibria(1))
    refused = refusal(
        "convert", tmp_path / "a.xyz", *NONE, *option.split(), "--out", tmp_path / "o"
    )
    name = option.split()[0]
    assert refused == f"{name} is for labels, and --labels none takes none"


def test_lengths_are_converted(tmp_path):
    frames = equilibria(1)
    WRITERS["a.npz"](tmp_path / "a.npz", frames)
    options = ["--length-unit", "nm", *NONE, "--out", tmp_path / "out"]
    run("convert", tmp_path / "a.npz", *options)
    np.testing.assert_allclose(read(tmp_path / "out")[0].pos, 10 * frames[0].positions, rtol=1e-5)


def test_molecules_of_many_sizes(tmp_path):
    """Groups stay together, and structures without one are groups of their own."""
    frames = equilibria(12)
    smiles = np.array([f"S{i % 4}" if i < 8 else "" for i in range(12)])
    fixed = np.concatenate([np.arange(len(frame)) == 0 for frame in frames])
    write_molecules(tmp_path / "m.npz", frames, smiles=smiles, id=np.arange(12) + 100, fixed=fixed)
    options = [*NONE, "--split", "by-system", "--group-key", "smiles", "--fractions"]
    fractions = "train=0.5,val=0.25,test=0.25"
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        output = run(
            "convert", tmp_path / "m.npz", *options, fractions, "--workers", workers, "--out", out
        )
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    assert "4 structures without a group: each is a system of its own" in output
    splits = {name: read(out / name) for name in ("train", "val", "test")}
    groups = {name: {record.sid for record in records} for name, records in splits.items()}
    assert [len(group) for group in groups.values()] == [4, 2, 2]
    assert not groups["train"] & groups["val"] | groups["train"] & groups["test"]
    records = {record.fid: record for part in splits.values() for record in part}
    assert sorted(records) == list(range(12))
    for fid, record in records.items():
        assert record.sid == (smiles[fid] or f"m {fid}")
        assert record.atomic_numbers.tolist() == frames[fid].numbers.tolist()
        np.testing.assert_allclose(record.pos, frames[fid].positions, atol=1e-6)
        assert record.fixed.nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"natoms": np.array([3, 4])}, "expected z (7,) and pos (7, 3), since natoms adds up to 7"),
        ({"natoms": np.array([3.0, 5.0])}, "natoms must be one positive number for each structure"),
        ({"natoms": np.array([8, 0])}, "natoms must be one positive number for each structure"),
        ({"smiles": np.array(["O"])}, "smiles must have a row for each of 2 structures or 8 atoms"),
        ({"z": np.full(8, 200)}, "atomic_numbers must be 1 to 118, got 200.0"),
    ],
)
def test_arrays_that_do_not_match(tmp_path, arrays, message):
    write_molecules(tmp_path / "m.npz", equilibria(2), **arrays)
    refused = refusal("convert", tmp_path / "m.npz", *NONE, "--out", tmp_path / "o")
    assert refused.startswith(f"{tmp_path / 'm.npz'}")
    assert message in refused


def test_a_group_that_is_not_there(tmp_path):
    write_molecules(tmp_path / "m.npz", equilibria(2))
    options = [*NONE, "--split", "by-system", "--group-key", "smiles", "--out", tmp_path / "o"]
    refused = refusal("convert", tmp_path / "m.npz", *options)
    assert refused == f"{tmp_path / 'm.npz'}: expected the key 'smiles', got natoms, z, pos"


def test_periodic_molecules(tmp_path):
    cells = np.array([10 * np.eye(3), 11 * np.eye(3)])
    write_molecules(tmp_path / "m.npz", equilibria(2), cell=cells, pbc=np.array([True] * 3))
    run("convert", tmp_path / "m.npz", *NONE, "--out", tmp_path / "out")
    assert [r.cell[0, 0, 0].item() for r in read(tmp_path / "out")] == [10, 11]
