"""Test the folder of a newcomer end to end: VASP runs, extended XYZ, an ASE database."""

from __future__ import annotations

import ase.db
import ase.io
from ase import Atoms
from helpers.labelled import slabs
from helpers.program import run_data as run
from helpers.vasp import write_steps_outcar, write_steps_xml

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.survey.samples import LmdbFolder


def test_one_line_converts_a_folder(tmp_path):
    source = tmp_path / "calculations"
    write_steps_xml(source / "fine" / "vasprun.xml.gz", [3, 4, 5], 10)
    write_steps_xml(source / "unconverged" / "vasprun.xml", [3, 10], 10)
    write_steps_outcar(source / "other" / "OUTCAR", [3, 3], 10)
    write_steps_xml(source / "killed" / "vasprun.xml", [3, 3], 10, cut=True)
    (source / "empty" / "OUTCAR").parent.mkdir()
    (source / "empty" / "OUTCAR").touch()
    frames = slabs(3)
    ase.io.write(source / "slabs.extxyz", frames)
    with (source / "slabs.extxyz").open("a") as file:  # without labels
        file.write("2\nProperties=species:S:1:pos:R:3\nH 0 0 0\nH 0 0 0.7\n")
    with ase.db.connect(source / "slabs.db") as database:
        for frame in slabs(2, seed=1):
            database.write(frame)
    out = tmp_path / "out"
    output = run("convert", source, "--on-bad", "skip", "--out", out)
    dataset = LmdbFolder(out)
    records = [dataset[i] for i in range(len(dataset))]
    found = {}
    for record in records:
        found[record.sid] = found.get(record.sid, 0) + 1
    assert sum(found.values()) == 3 + 1 + 2 + 1 + 3 + 2, (found, output)
    assert "1 structures, whose electronic steps did not converge, are left out" in output
    assert "1 bad files left out: " in output
    assert str(source / "empty" / "OUTCAR") in output
    assert "1 bad frames left out: expected energy and forces, got only" in output
    assert f"{source / 'slabs.extxyz'}, frame 3" in output
    run("check", out)
    assert "avg_num_nodes" in run("stats", out, "--cutoff", "6")


def test_own_keys(tmp_path):
    frames = []
    for frame in slabs(3):
        results = frame.calc.results
        own = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
        own.info.update(REF_energy=results["energy"], energy=0.0)
        own.arrays["REF_forces"] = results["forces"]
        frames.append(own)
    ase.io.write(tmp_path / "a.extxyz", frames)
    keys = ["--energy-key", "REF_energy", "--forces-key", "REF_forces"]
    run("convert", tmp_path / "a.extxyz", *keys, "--out", tmp_path / "out")
    assert len(LmdbFolder(tmp_path / "out")) == 3
