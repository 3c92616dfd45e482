"""Test ``dens data check`` and ``dens data stats`` on structures without labels, and on pairs."""

from __future__ import annotations

import json

import ase.io
import numpy as np
import pytest
import yaml
from helpers.equilibria import equilibria, moved, write_molecules
from helpers.labelled import slabs
from helpers.program import refused_data as refusal
from helpers.program import run_data as run
from helpers.program import run_program
from scipy.spatial.transform import Rotation

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import add_start, atoms_to_data
from dens.data.survey.displacement import displacement
from dens.data.survey.samples import as_sample

ONLY = "no energies or forces: structures only"


def test_what_is_said_of_structures(tmp_path):
    frames = equilibria(6)
    write_molecules(tmp_path / "m.npz", frames)
    run("convert", tmp_path / "m.npz", "--labels", "none", "--out", tmp_path / "out")
    checked = run("check", tmp_path / "out")
    assert "6 structures of 3 to 9 atoms, 5.8 on average" in checked
    assert checked.count(ONLY) == 1
    assert "energy [eV]" not in checked
    assert checked.endswith("ok\n")
    (report,) = json.loads(run("check", tmp_path / "out", "--json"))
    assert (report["energy"], report["forces"], report["pairs"]) == (None, None, 0)
    assert refusal("check", tmp_path / "out", "--plot", tmp_path / "a.png").startswith("--plot")
    output = run("stats", tmp_path / "out", "--cutoff", 5)
    assert ONLY in output
    assert "elements (structures with them): H 6 C 4 O 3 N 1" in output
    assert "3 to 9" in output
    path = tmp_path / "stats.yml"
    run("stats", tmp_path / "out", "--cutoff", 5, "--out", path)
    (config,) = yaml.safe_load_all(path.read_text())
    assert config.keys() == {"model"}
    assert config["model"]["backbone"]["avg_num_nodes"] == pytest.approx(35 / 6)
    assert config["model"]["backbone"]["avg_degree"] > 1


def test_faults_of_structures(tmp_path):
    """Geometry is checked as ever; labels in some of the records are an error."""
    frames = equilibria(4)
    frames[1].positions[1] = frames[1].positions[0]
    data = [atoms_to_data(frame, sid="a", fid=i, labels=False) for i, frame in enumerate(frames)]
    data[2].y = -1.0
    with LmdbWriter(tmp_path / "out") as writer:
        for record in data:
            writer.write(record)
    status, output = run_program("data", "check", tmp_path / "out")
    assert status == 1
    assert "error: 1 structures have atoms closer than 0.5 times their covalent radii" in output
    assert "error: 1 structures have an energy or forces, and the first one has none" in output
    assert refusal("stats", tmp_path / "out").startswith("record 2 sid=a fid=2: it has labels")


def test_pairs_are_described(tmp_path):
    frames = equilibria(3)
    starts = [frame.positions for frame in moved(frames)]
    starts[0] = frames[0].positions
    starts[2] = np.full_like(starts[2], np.nan)
    write_molecules(tmp_path / "m.npz", frames, start=np.concatenate(starts))
    options = ["--labels", "none", "--pairs", "start", "--out", tmp_path / "out"]
    run("convert", tmp_path / "m.npz", *options)
    for command in ("check", "stats"):
        output = run(command, tmp_path / "out")
        assert "pairs: 2 of 3 structures have a start; rms displacement of free atoms [Å]" in output
        assert "(record 1 sid=m fid=1); 1 did not move" in output


def as_pair(atoms, start):
    data = atoms_to_data(atoms, sid=0, fid=0, labels=False)
    add_start(data, start)
    return as_sample(0, data, {})


def test_displacements():
    """Rotations of molecules do not count, mirrored ones do; slabs go by the nearest image."""
    (water,) = equilibria(1)
    turned = Rotation.random(random_state=0).apply(water.positions) + 3
    assert displacement(as_pair(water, turned)) == pytest.approx(0, abs=1e-5)
    water.positions[0] += (0.3, 0, 0)
    chiral = equilibria(6)[5]
    mirrored = chiral.positions * (1, 1, -1)
    chiral.rattle(0.2, seed=0)
    assert displacement(as_pair(chiral, mirrored)) > 0.1
    (slab,) = slabs(1)
    fixed = slab.constraints[0].index
    start = slab.positions + slab.cell.array[0] * np.arange(10)[:, None]
    start[np.setdiff1d(np.arange(10), fixed)] += (0.3, 0.4, 0)
    assert displacement(as_pair(slab, start)) == pytest.approx(0.5, abs=1e-5)
    slab.set_constraint()
    start = slab.positions + np.array([0.3, 0.4, 0])
    assert displacement(as_pair(slab, start)) == pytest.approx(0, abs=1e-5)


def test_a_start_of_another_shape(tmp_path):
    (frame,) = equilibria(1)
    data = atoms_to_data(frame, sid="a", fid=0, labels=False)
    for start, message in (
        (np.zeros((2, 3)), "pos_start must be (3, 3), got shape (2, 3)"),
        (np.array([[np.nan] * 3, [0] * 3, [0] * 3]), "pos_start must be finite"),
    ):
        with pytest.raises(ValueError, match="structure sid=a fid=0: pos_start must be") as error:
            add_start(data, start)
        assert message in str(error.value)


def test_frames_of_a_relaxation(tmp_path):
    frames = slabs(3)
    ase.io.write(tmp_path / "a.traj", frames)
    run("convert", tmp_path / "a.traj", "--pairs", "first-last", "--out", tmp_path / "out")
    output = run("stats", tmp_path / "out")
    assert "pairs: 1 of 1 structures have a start" in output
    assert "energy [eV]" in output
