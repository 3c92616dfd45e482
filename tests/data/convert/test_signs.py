"""Test that converting gradients in the place of forces ends with a warning."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from helpers.labelled import label, write_oc20
from helpers.program import run_data

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import atoms_to_data
from dens.data.survey.consistency import find_gradients

WARNING = "warning: energies go up along the forces in "


def springs(n: int, sign: int = 1, boxed: bool = False) -> list[Atoms]:
    """Make steps of ethanol whose atoms are held by springs of 2 eV/Å^2."""
    rng = np.random.default_rng(0)
    rest = molecule("CH3CH2OH")
    if boxed:
        rest.set_cell([12, 13, 14])
        rest.pbc = True
        rest.center()
    step, frames = np.zeros((9, 3)), []
    for _ in range(n):
        step += rng.normal(scale=0.02, size=(9, 3))
        atoms = rest.copy()
        atoms.positions += step
        frames.append(label(atoms, (step**2).sum(), sign * -2 * step))
    return frames


def write(command: str, path: Path, frames: list[Atoms]) -> list[object]:
    """Write the source of a command; return its arguments."""
    if command == "oc20":
        lines = [f"random7,frame{i},0.0" for i in range(len(frames))]
        write_oc20(path, 0, frames, lines)
        return [path]
    path.mkdir()
    ase.io.write(path / "a.extxyz", frames)
    if command == "md17":
        sizes = ["--train", 20, "--val", 10, "--units", "eV-A"]
        return ["ethanol", "--source", path / "a.extxyz", *sizes]
    return [path, "--split", "by-block", "--block", 5, "--fractions", "train=.5,val=.5"]


@pytest.mark.parametrize("command", ["convert", "oc20", "md17"])
@pytest.mark.parametrize("sign", [1, -1], ids=["forces", "gradients"])
def test_one_line_warns_of_gradients(tmp_path, command, sign):
    source = write(command, tmp_path / "in", springs(40, sign, boxed=command == "oc20"))
    output = run_data(command, *source, "--out", tmp_path / "out")
    assert output.count("warning: ") == (sign < 0)
    if sign < 0:
        (line,) = [line for line in output.splitlines() if line.startswith(WARNING)]
        assert line.endswith("gradients in the place of forces?")


def test_few_records_of_many_are_read(tmp_path, monkeypatch):
    with LmdbWriter(tmp_path / "a") as writer:
        for i, atoms in enumerate(springs(200, -1)):
            labels = atoms.calc.results
            record = atoms_to_data(
                atoms, sid=0, fid=i, energy=labels["energy"], forces=labels["forces"]
            )
            writer.write(record)
    read = []

    def as_sample(i, data):
        read.append(i)
        return f"record {i} is left to the others" if i < 100 else original(i, data)

    original = find_gradients.__globals__["as_sample"]
    monkeypatch.setitem(find_gradients.__globals__, "as_sample", as_sample)
    assert len(find_gradients([tmp_path / "a"], records=60)) == 1
    assert len(read) == 60
    assert read[:10] == list(range(10))
    assert read[-1] == 199
