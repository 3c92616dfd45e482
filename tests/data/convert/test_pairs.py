"""Test ``dens data convert --pairs``: the positions that each structure was relaxed from."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from helpers.equilibria import equilibria, moved, write_molecules
from helpers.labelled import slabs
from helpers.program import refused_data as refusal
from helpers.program import run_data as run
from helpers.vasp import write_steps_xml
from helpers.written import contents, info, read

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.checked import CheckedRecords


def convert(out: Path, *arguments: object) -> str:
    return run("convert", *arguments, "--labels", "none", "--out", out)


def refused(out: Path, *arguments: object) -> str:
    return refusal("convert", *arguments, "--labels", "none", "--out", out)


def test_an_array_beside_each_structure(tmp_path):
    """One NaN is enough: such a structure is kept without a start."""
    frames = equilibria(4)
    starts = [frame.positions for frame in moved(frames)]
    starts[1][2, 0] = np.nan
    write_molecules(tmp_path / "a.npz", frames, pos_mmff94=np.concatenate(starts))
    for frame, start in zip(frames, starts, strict=True):
        frame.arrays["pos_mmff94"] = start
    ase.io.write(tmp_path / "a.xyz", frames, format="extxyz")
    for name in ("a.npz", "a.xyz"):
        out = tmp_path / f"out_{name}"
        output = convert(out, tmp_path / name, "--pairs", "pos_mmff94")
        assert "3 structures with a start (pos_start); 1 have none (NaN)" in output
        records = read(out)
        for i, (record, start) in enumerate(zip(records, starts, strict=True)):
            expected = start if i != 1 else np.full_like(start, np.nan)
            np.testing.assert_allclose(record.pos_start, expected, atol=1e-6)
        assert info(out)["pairs"] == "pos_mmff94"
        checked = CheckedRecords(records, {"fixed": "atom"}).__getitems__([0, 1])
        assert all("pos_start" in record for record in checked)
    missing = refused(tmp_path / "o", tmp_path / "a.npz", "--pairs", "pos_gfn2")
    assert missing.endswith("expected the key 'pos_gfn2', got natoms, z, pos, pos_mmff94")
    missing = refused(tmp_path / "o", tmp_path / "a.xyz", "--pairs", "pos_gfn2")
    assert "frame 0: expected the array 'pos_gfn2' (--pairs), got only" in missing


def test_a_file_of_starts(tmp_path):
    """Starts are found by their order, in files as in folders, whatever the split and workers."""
    for number, frames in enumerate((slabs(30), slabs(12, seed=1))):
        for frame in frames:
            frame.wrap()
        for folder, structures in (("ends", frames), ("starts", moved(frames))):
            (tmp_path / folder).mkdir(exist_ok=True)
            ase.io.write(tmp_path / folder / f"{number}.extxyz", structures)
    pairs = [tmp_path / "ends", "--pairs", tmp_path / "starts", "--split", "by-block", "--block", 3]
    for workers in (1, 2):
        output = convert(tmp_path / f"out{workers}", *pairs, "--workers", workers)
        assert "42 structures with a start (pos_start); 0 have none (NaN)" in output
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    starts = {str(i): ase.io.read(tmp_path / f"starts/{i}.extxyz", ":") for i in range(2)}
    for record in (*read(tmp_path / "out1/train"), *read(tmp_path / "out1/val")):
        expected = starts[record.sid][record.fid].positions
        np.testing.assert_allclose(record.pos_start, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(), "starts.xyz: expected 3 starts, one for each frame of"),
        (lambda s: s.reverse(), "ends.xyz, frame 0: expected the same elements in the same order"),
        (lambda s: s[1].set_cell(np.eye(3) * 9), "ends.xyz, frame 1: expected the same cell in"),
        (lambda s: s[2].positions.fill(np.nan), "frame 2: the positions of its start must be fini"),
    ],
)
def test_starts_that_do_not_match(tmp_path, change, message):
    frames = equilibria(3)
    for frame in frames:
        frame.set_cell(np.eye(3) * 8)
        frame.pbc = True
    starts = moved(frames)
    change(starts)
    ase.io.write(tmp_path / "ends.xyz", frames, format="extxyz")
    ase.io.write(tmp_path / "starts.xyz", starts, format="extxyz")
    pairs = [tmp_path / "ends.xyz", "--pairs", tmp_path / "starts.xyz"]
    assert message in refused(tmp_path / "o", *pairs)


def test_bad_starts_are_left_out_and_named(tmp_path):
    frames = equilibria(4)
    starts = moved(frames)
    starts[1], starts[2] = starts[2], starts[1]
    ase.io.write(tmp_path / "ends.traj", frames)
    ase.io.write(tmp_path / "starts.traj", starts)
    pairs = [tmp_path / "ends.traj", "--pairs", tmp_path / "starts.traj", "--on-bad", "skip"]
    output = convert(tmp_path / "out", *pairs)
    assert "1 bad frames left out: expected the same elements in the same order" in output
    assert f"{tmp_path / 'ends.traj'}, frame 2" in output
    assert [record.fid for record in read(tmp_path / "out")] == [0, 3]
    (tmp_path / "ends").mkdir()
    (tmp_path / "ends/a.traj").touch()
    ase.io.write(tmp_path / "ends/b.traj", frames)
    pairs[0] = tmp_path / "ends"
    assert "--pairs matches all files in their order, so it" in refused(tmp_path / "o", *pairs)


def test_first_and_last_frames(tmp_path):
    """Of each relaxation, whatever its format, the last frame is taken with the first as start."""
    folder = tmp_path / "in"
    folder.mkdir()
    frames = slabs(4)
    frames[3].calc.results["forces"][:] = 0.01
    ase.io.write(folder / "a.traj", frames)
    single = slabs(1)
    single[0].calc.results["forces"][:] = 0.01
    ase.io.write(folder / "b.extxyz", single)
    write_steps_xml(folder / "c" / "vasprun.xml", [3, 3, 3], 10)
    split = ["--split", "by-system", "--fractions", "train=0.5,val=0.5"]
    output = convert(tmp_path / "out", folder, "--pairs", "first-last", *split)
    assert "of 3 files the last frame is taken, and the first as its start; 3 frames" in output
    assert "2 structures with a start (pos_start); 1 have none (NaN)" in output
    assert "1 structures have a force above 0.05 eV/Å on a free atom: not at equilibrium?" in output
    records = {r.sid: r for name in ("train", "val") for r in read(tmp_path / "out" / name)}
    assert {sid: r.fid for sid, r in records.items()} == {"a": 3, "b": 0, "c/vasprun": 2}
    np.testing.assert_allclose(records["a"].pos_start, frames[0].positions, atol=1e-5)
    assert records["b"].pos_start.isnan().all()


def test_pairs_of_labelled_structures(tmp_path):
    frames = slabs(2)
    ase.io.write(tmp_path / "a.traj", frames)
    run("convert", tmp_path / "a.traj", "--pairs", "first-last", "--out", tmp_path / "out")
    (record,) = read(tmp_path / "out")
    assert record.y == frames[1].calc.results["energy"]
    np.testing.assert_allclose(record.pos_start, frames[0].positions, atol=1e-5)


def test_a_file_that_does_not_exist(tmp_path):
    ase.io.write(tmp_path / "a.xyz", equilibria(1), format="extxyz")
    missing = refused(tmp_path / "o", tmp_path / "a.xyz", "--pairs", "nowhere.xyz")
    assert missing == "--pairs nowhere.xyz does not exist"
