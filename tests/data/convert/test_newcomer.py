"""Test the folder of a newcomer end to end: VASP runs, extended XYZ, an ASE database."""

from __future__ import annotations

import ase.io
from helpers.calculations import GOOD, write_calculations
from helpers.labelled import slabs
from helpers.program import refused_data
from helpers.program import run_data as run

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.store.folders import LmdbFolder


def test_one_line_converts_a_folder(tmp_path):
    source = tmp_path / "calculations"
    write_calculations(source)
    out = tmp_path / "out"
    keys = ["--energy-key", "REF_energy", "--forces-key", "REF_forces"]
    output = run("convert", source, *keys, "--on-bad", "skip", "--out", out)
    dataset = LmdbFolder(out)
    records = [dataset[i] for i in range(len(dataset))]
    found = {}
    for record in records:
        found[record.sid] = found.get(record.sid, 0) + 1
    assert sum(found.values()) == sum(GOOD.values()), (found, output)
    assert "1 structures, whose electronic steps did not converge, are left out" in output
    assert "1 bad files left out: " in output
    assert str(source / "empty" / "OUTCAR") in output
    assert "1 bad frames left out: expected the key 'REF_energy' (--energy-key), got only" in output
    assert "10 structures of files without REF_energy keep their own energy: " in output
    energies = [record.y for record in records if "extxyz" in record.sid]
    assert energies == [frame.get_potential_energy() for frame in slabs(3)]
    assert f"{source / 'slabs.extxyz'}, frame 3" in output
    run("check", out)
    assert "avg_num_nodes" in run("stats", out, "--cutoff", "6")


def test_a_key_that_no_file_has_is_an_error(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", slabs(2))
    ase.io.write(tmp_path / "b.traj", slabs(2))
    message = refused_data(
        "convert", tmp_path, "--energy-key", "REF_enrgy", "--out", tmp_path / "o"
    )
    assert "expected the key 'REF_enrgy' (--energy-key), got only" in message
