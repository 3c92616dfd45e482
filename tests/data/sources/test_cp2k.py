"""Test trajectories of CP2K: pairs of files with positions and forces, and their cells."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.units import Bohr, Hartree
from helpers.converted import convert, refused
from helpers.labelled import write_traj
from helpers.written import info

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)

CELL = np.array([[9.85, 0, 0], [1, 9, 0], [0, 0, 8]])
RESTART = """&MOTION
   &MD
     ENSEMBLE  {ensemble}
   &END MD
&END MOTION
&FORCE_EVAL
  &SUBSYS
    &CELL
      A     9.85  0.0  0.0
      B     1.0  9.0  0.0
      C     0.0  0.0  8.0
      PERIODIC  {periodic}
    &END CELL
    &COORD
O 0 0 0
    &END COORD
  &END SUBSYS
&END FORCE_EVAL
"""


def write_frames(path: Path, steps: list[int], symbols: str, values: np.ndarray) -> None:
    """Write a file as CP2K prints it, with the energy -17 - step / 100."""
    lines = []
    for step, rows in zip(steps, values, strict=True):
        energy = -17 - step / 100
        lines += [
            f"{len(rows):8d}",
            f" i = {step:8d}, time = {step / 2:12.3f}, E = {energy:20.10f}",
        ]
        lines += [
            f"  {symbol}  " + "".join(f"{x:20.10f}" for x in row)
            for symbol, row in zip(symbols, rows, strict=True)
        ]
    path.write_text("\n".join(lines) + "\n")


def write_pair(
    folder: Path, steps: list[int], forces_of: list[int] | None = None, order: str = "OHH"
) -> tuple[np.ndarray, np.ndarray]:
    """Write water of a run; return positions (Å) and forces (Hartree/Bohr) of its steps."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    n = max([*steps, *(forces_of or [])]) + 1
    pos = molecule("H2O").positions + rng.normal(scale=0.05, size=(n, 3, 3))
    forces = rng.normal(scale=0.01, size=(n, 3, 3))
    given = steps if forces_of is None else forces_of
    write_frames(folder / "run-pos-1.xyz", steps, "OHH", pos[steps])
    write_frames(folder / "run-frc-1.xyz", given, order, forces[given])
    return pos[steps], forces[steps]


def write_cells(folder: Path, cells: dict[int, np.ndarray]) -> None:
    """Write ``run-1.cell`` as CP2K prints it."""
    rows = ["#   Step   Time [fs]       Ax [Angstrom]       Ay [Angstrom] ..."]
    for step, cell in cells.items():
        values = [*np.ravel(cell), np.linalg.det(cell)]
        rows.append(f"{step:10d} {step / 2:12.3f}" + "".join(f"{x:20.10f}" for x in values))
    (folder / "run-1.cell").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("named", [False, True], ids=["folder", "files"])
def test_pairs_are_converted(tmp_path, named):
    source = tmp_path / "in"
    pos, forces = write_pair(source, [0, 1, 2, 3])
    write_cells(source, {0: CELL})
    write_frames(source / "run-vel-1.xyz", [0], "OHH", pos[:1])
    sources = sorted(source.glob("*.xyz")) if named else [source]
    records, output = convert(tmp_path / "out", *sources)
    assert [record.y for record in records] == pytest.approx(
        [(-17 - step / 100) * Hartree for step in range(4)], abs=1e-6
    )
    for record, own_pos, own_forces in zip(records, pos, forces, strict=True):
        assert record.atomic_numbers.tolist() == [8, 1, 1]
        shifts = (record.pos.double().numpy() - own_pos) @ np.linalg.inv(CELL)
        np.testing.assert_allclose(shifts, shifts.round(), atol=1e-6)  # wrapped into the cell
        np.testing.assert_allclose(record.force, own_forces * Hartree / Bohr, atol=1e-5)
        np.testing.assert_allclose(record.cell[0], CELL, atol=1e-6)
        assert record.sid == "run-pos-1"
    assert "Hartree and Hartree/Bohr become eV and eV/Å" in output
    assert "without a cell" not in output
    if not named:
        assert f"{source}: taken 1 cp2k\n" in output
        assert "left out, since folders are searched for other kinds: 1 .xyz;" in output


def test_forces_are_matched_by_step(tmp_path):
    _, forces = write_pair(tmp_path / "in", [0, 5, 10], [10, 0, 5])
    records, _ = convert(tmp_path / "out", tmp_path / "in")
    np.testing.assert_allclose(records[1].force, forces[1] * Hartree / Bohr, atol=1e-5)
    write_pair(tmp_path / "again", [0, 1, 1, 2])  # a run that was continued
    records, _ = convert(tmp_path / "out2", tmp_path / "again")
    assert len(records) == 4


CHANGING = {step: CELL + step / 10 * np.eye(3) for step in range(3)}
CELLS = {
    "none": (lambda folder: None, [None] * 3),
    "constant": (lambda folder: write_cells(folder, {0: CELL, 1: CELL}), [CELL] * 3),
    "changing": (lambda folder: write_cells(folder, CHANGING), CHANGING.values()),
    "restart": (
        lambda folder: (folder / "run-1.restart").write_text(
            RESTART.format(ensemble="NVT", periodic="XYZ")
        ),
        [CELL] * 3,
    ),
    "open restart": (
        lambda folder: (folder / "run-1.restart").write_text(
            RESTART.format(ensemble="NVT", periodic="NONE")
        ),
        [None] * 3,
    ),
}


@pytest.mark.parametrize("case", CELLS)
def test_cells(tmp_path, case):
    write_pair(tmp_path / "in", [0, 1, 2])
    write, expected = CELLS[case]
    write(tmp_path / "in")
    records, output = convert(tmp_path / "out", tmp_path / "in")
    for record, cell in zip(records, expected, strict=True):
        if cell is None:
            assert not record.pbc.any()
        else:
            np.testing.assert_allclose(record.cell[0], cell, atol=1e-6)
    assert ("1 of them without a cell, taken as open, since no" in output) == (case == "none")


def unlink(name):
    return lambda folder: (folder / name).unlink()


def append(name, text):
    return lambda folder: (folder / name).write_text((folder / name).read_text() + text)


REFUSED = {
    "no forces": ({}, unlink("run-frc-1.xyz"), "expected the forces of its steps in run-frc-1.xyz"),
    "a step without forces": (
        {"forces_of": [0, 2]},
        None,
        ", frame 1: step 1 has no forces in the file of forces",
    ),
    "forces without positions": (
        {"forces_of": [0, 1, 2, 3, 4]},
        None,
        "run-frc-1.xyz has forces of 2 steps without positions, the first: 3",
    ),
    "a step that is there twice": (
        {"forces_of": [0, 0, 1, 2]},
        None,
        "step 0 is there twice, and run-frc-1.xyz has other steps",
    ),
    "atoms in another order": (
        {"order": "HOH"},
        None,
        ", frame 0: expected the forces of its atoms in the same order, OH2, got those of HOH",
    ),
    "a cut file of forces": ({}, append("run-frc-1.xyz", " 3\n"), "run-frc-1.xyz: frame 3 is cut"),
    "another comment line": (
        {},
        append("run-pos-1.xyz", " 1\nstep 3\nO 0 0 0\n"),
        "frame 3: expected a comment line like i = 5, E = -17.16, got 'step 3'",
    ),
    "cells that end": (
        {},
        lambda folder: write_cells(folder, {0: CELL, 1: 2 * CELL}),
        "run-1.cell has no cell for step 2, and its cells change",
    ),
    "a table that is none": (
        {},
        lambda folder: (folder / "run-1.cell").write_text("0 0 1 1 1\n"),
        "run-1.cell: expected step, time and nine numbers of the cell in a row, got 5",
    ),
    "one cell of many": (
        {},
        lambda folder: (folder / "run-1.restart").write_text(
            RESTART.format(ensemble="NPT_I", periodic="XYZ")
        ),
        "its cell changes, as run-1.restart says: expected the cells in run-1.cell beside it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(tmp_path, case):
    options, change, message = REFUSED[case]
    write_pair(tmp_path / "in", [0, 1, 2], **options)
    if change:
        change(tmp_path / "in")
    line = refused(tmp_path / "out", tmp_path / "in")
    assert line.startswith(f"{tmp_path}/in/run-pos-1.xyz")
    assert message in line


def test_names_and_units(tmp_path):
    write_pair(tmp_path / "in", [0, 1])
    path = tmp_path / "in" / "run-pos-1.xyz"
    line = refused(tmp_path / "out", path.with_name("run-frc-1.xyz"))
    assert "run-frc-1.xyz has no positions: name run-pos-1.xyz, with which it is read" in line
    line = refused(tmp_path / "out", path, "--units", "Hartree-Bohr")
    assert "CP2K's Hartree and Hartree/Bohr become eV and eV/Å by themselves" in line
    path.rename(tmp_path / "in" / "steps.xyz")
    line = refused(tmp_path / "out", tmp_path / "in" / "steps.xyz")
    assert "steps.xyz: expected a name like PROJECT-pos-1.xyz for positions of CP2K" in line


def test_killed_runs_and_packed_files(tmp_path):
    """With ``skip``, whole steps are taken; beside files in eV, no units need to be given."""
    source = tmp_path / "in"
    write_pair(source, [0, 1, 2])
    for name in ("run-pos-1.xyz", "run-frc-1.xyz"):
        text = (source / name).read_text()
        (source / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        (source / name).unlink()
    write_pair(source / "b", [0, 1, 2, 3], [0, 1])
    append("run-frc-1.xyz", "3\n")(source / "b")
    records, output = convert(tmp_path / "out", source, "--on-bad", "skip")
    assert [(record.sid, record.fid) for record in records] == [
        *(("b/run-pos-1", step) for step in range(2)),
        *(("run-pos-1", step) for step in range(3)),
    ]
    assert "1 bad frames left out: run-frc-1.xyz: frame 2 is cut off after 1 lines" in output
    (entry,) = info(tmp_path / "out")["skipped"]
    assert entry["first"] == [f"{source}/b/run-pos-1.xyz, frame 2"]
    write_traj(tmp_path / "more" / "a.traj", 2)
    write_pair(tmp_path / "more", [0, 1])
    write_cells(tmp_path / "more", {0: CELL})
    records, _ = convert(tmp_path / "both", tmp_path / "more")
    assert len(records) == 4


def test_labels_are_consistent(tmp_path):
    """Forces of a spring, in atomic units, are found to belong to its energies."""
    folder = tmp_path / "in"
    folder.mkdir()
    lengths = np.linspace(0.6, 0.9, 12)  # Å
    atoms = [Atoms("HH", [(0, 0, 0), (0, 0, d)]) for d in lengths]
    pulls = -0.5 * (lengths - 0.74) / Bohr  # Hartree/Bohr
    forces = np.zeros((12, 2, 3))
    forces[:, 1, 2], forces[:, 0, 2] = pulls, -pulls
    for name, values in (("pos", [a.positions for a in atoms]), ("frc", forces)):
        write_frames(folder / f"h2-{name}-1.xyz", list(range(12)), "HH", values)
    text = (folder / "h2-pos-1.xyz").read_text()
    for step, length in enumerate(lengths):
        energy = 0.25 * ((length - 0.74) / Bohr) ** 2 - 1.1
        text = text.replace(f"{-17 - step / 100:20.10f}", f"{energy:20.10f}")
    (folder / "h2-pos-1.xyz").write_text(text)
    records, _ = convert(tmp_path / "out", folder)
    for one, other in pairwise(records):
        mean = (one.force + other.force) / 2
        expected = -float((mean * (other.pos - one.pos)).sum())
        assert other.y - one.y == pytest.approx(expected, abs=1e-5)
