"""Test that options are refused where they would be ignored, and groups compare by their text."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from helpers.labelled import label, molecules, slabs, write_oc20
from helpers.program import refused_data as refusal
from helpers.program import run_data as run
from torch_geometric.data import Data

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.cli import commands
from dens.data.convert.command_line import EXCLUSIVE, NEEDS
from dens.data.store.lmdb import LmdbWriter

CONVERT = ["convert", "a.extxyz", "--out", "out"]
OC20 = ["oc20", "pairs", "--out", "out"]
RECORDS = ["oc20", "records", "--md", "no", "--out", "out"]
MD17 = ["md17", "ethanol", "--source", "x.npz", "--out", "out"]
SAME = "are two ways to say the same: give one"


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (CONVERT, "--fractions train=0.8,val=0.2", "--fractions needs --split"),
        (CONVERT, "--fractions train=0.9,val=0.1", "--fractions needs --split"),  # the default
        (CONVERT, "--seed 0", "--seed needs --split"),
        (CONVERT, "--seed 1 --index train=i.txt", "--seed needs --split"),
        (CONVERT, "--block 5", "--block needs --split by-block"),
        (CONVERT, "--block 5 --split by-system", "--block needs --split by-block"),
        (CONVERT, "--group-key mid", "--group-key needs --split by-system"),
        (CONVERT, "--group-key mid --split by-block", "--group-key needs --split by-system"),
        (CONVERT, "--max-neighbors 20", "--max-neighbors needs --cutoff"),
        (CONVERT, "--split by-block --index train=i.txt", f"--split and --index {SAME}"),
        (CONVERT, "--units eV-A --energy-unit eV", f"--units and --energy-unit {SAME}"),
        (OC20, "--max-neighbors 20", "--max-neighbors needs --cutoff"),
        (OC20, "--data-log logs", "pairs: --data-log is for LMDB files, but this has extxyz"),
        (RECORDS, "--ref-energy", "records: --ref-energy is for extxyz, but this has LMDB files"),
        (RECORDS, "--max-force 50", "records: --max-force is for extxyz, but this has LMDB files"),
        (RECORDS, "--cutoff 6", "records: --cutoff is for extxyz, but this has LMDB files"),
        (MD17, "--val-index v", "--val-index needs --train-index"),
        (MD17, "--test-index v", "--test-index needs --train-index"),
        (MD17, "--train 5 --train-index t", f"--train and --train-index {SAME}"),
        (MD17, "--val 5 --train-index t --val-index v", f"--val and --val-index {SAME}"),
        (MD17, "--seed 5 --train-index t --val-index v", f"--seed and --val-index {SAME}"),
        (["stats", "records"], "--max-neighbors 20", "--max-neighbors needs --cutoff"),
        (["stats", "records"], "--measured 20", "--measured needs --cutoff or --config"),
    ],
)
def test_ignored_options_are_refused(tmp_path, monkeypatch, command, options, message):
    monkeypatch.chdir(tmp_path)
    if command is CONVERT:
        ase.io.write("a.extxyz", slabs(2))
    if command is OC20:
        write_oc20(Path("pairs"), 0, slabs(1), ["random7,frame0,-1.5"])
    if command is RECORDS:
        with LmdbWriter("records") as writer:
            writer.write(Data(natoms=1, energy=-1.0))
    assert refusal(*command, *options.split()).startswith(message)
    assert not Path("out").exists()


def test_the_table_names_options_that_exist():
    group = commands.get_command(None, "data")
    rows = [(row[0], [row[1], *row[2]]) for row in NEEDS]
    rows += [(command, [one, other, unless]) for command, one, other, unless in EXCLUSIVE]
    for command, options in rows:
        known = {param.name for param in group.get_command(None, command).params}
        assert {option for option in options if option} <= known


def write_groups(path: Path, groups: list[str]) -> None:
    frames = []
    for number, _ in enumerate(groups):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.01, seed=number)
        frames.append(label(atoms, number, np.ones((4, 3))))
    ase.io.write(path, frames, format="extxyz")
    lines = path.read_text().splitlines()
    for number, group in enumerate(groups):
        lines[6 * number + 1] += f" mid={group} last=1"
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "groups",
    [
        ['"001"', '"1"', "1e2", "100.0"],
        ["1_0", "10", "'010'", "10.0"],
        ["T", "true", "True", "TRUE"],
        ["0x1", "'1 2'", '"01 2"', "{1 2.0}"],
    ],
)
def test_groups_compare_by_their_text(tmp_path, groups):
    write_groups(tmp_path / "a.xyz", groups)
    options = ["--split", "by-system", "--group-key", "mid", "--fractions"]
    four = ",".join(f"{name}=0.25" for name in "abcd")
    run("convert", tmp_path / "a.xyz", *options, four, "--out", tmp_path / "out")
    sids = []
    for name in "abcd":
        with np.load(tmp_path / "out" / name / "metadata.npz") as metadata:
            assert len(metadata["natoms"]) == 1
        from fairchem.core.datasets.lmdb_dataset import LmdbDataset

        sids.append(LmdbDataset({"src": str(tmp_path / "out" / name)})[0].sid)
    assert sorted(sids) == sorted(group.strip("\"'{}") for group in groups)


def test_molecules_and_periodic_structures_name_the_option(tmp_path):
    ase.io.write(tmp_path / "a.traj", [*slabs(1), *molecules(1)])
    refused = refusal("convert", tmp_path / "a.traj", "--out", tmp_path / "out")
    assert "or give --pbc TTT, which puts the open ones into boxes" in refused
