"""Test that slabs, wires and molecules become periodic without false neighbours."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from helpers.labelled import label, slabs
from helpers.program import refused_data as refusal
from helpers.program import run_data as run

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.graphs.boundaries import describe_vacuum, settle_boundaries
from dens.graphs.radius import periodic_radius_graph

SLAB = (1, 1, 0)


def slab(vacuum: float | None = None, pbc: tuple = SLAB) -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=vacuum)
    add_adsorbate(atoms, "O", 1.2, "fcc")
    atoms.pbc = pbc
    atoms.rattle(0.05)
    return atoms


def tilted() -> Atoms:
    atoms = slab(9.0)
    atoms.cell[2] += [2.5, 1.0, 0.0]
    return atoms


def wire_along(axis: int) -> Atoms:
    atoms = Atoms("C2", np.roll([[0, 0.2, 0], [1.3, 0, 0]], axis, axis=1))
    atoms.cell[axis, axis] = 2.6
    atoms.pbc = np.arange(3) == axis
    return atoms


def edges(atoms: Atoms, pbc: np.ndarray, cutoff: float) -> set[tuple[int, int, bytes]]:
    """Find the edges, each with its vector, which does not depend on the cells' names."""
    pos = torch.tensor(atoms.positions)
    graph = periodic_radius_graph(
        pos,
        torch.tensor(atoms.cell.array)[None],
        torch.tensor([len(atoms)]),
        cutoff,
        pbc=torch.tensor(pbc)[None],
    )
    source, target = graph.edge_index
    vectors = pos[source] + graph.cell_offsets.double() @ torch.tensor(atoms.cell.array)
    vectors = (vectors - pos[target]).numpy().round(4) + 0.0
    return {(int(a), int(b), v.tobytes()) for a, b, v in zip(source, target, vectors, strict=True)}


@pytest.mark.parametrize(
    ("make", "made", "vacuum"),
    [
        (slab, "with 14 Å of vacuum", None),
        (lambda: slab(9.0), "with 16 Å of vacuum", None),
        (tilted, "with 16 Å of vacuum", None),
        (lambda: slab(None, (1, 1, 1)), "with 14 Å of vacuum", None),  # no third cell vector
        (lambda: wire_along(0), "with 14 Å of vacuum", None),
        (lambda: wire_along(1), "with 14 Å of vacuum", None),
        (lambda: wire_along(2), "with 14 Å of vacuum", None),
        (lambda: slab(6.0), "with 10 Å of vacuum", 10.8),
    ],
    ids=["no vector", "vacuum", "tilted", "TTT", "along x", "along y", "along z", "narrow"],
)
def test_graphs_are_those_of_the_open_directions(make, made, vacuum):
    atoms, counts = make(), Counter()
    before = atoms.copy()
    settle_boundaries(atoms, counts)
    assert atoms.pbc.all()
    assert atoms.cell.volume > 0
    np.testing.assert_array_equal(atoms.positions, before.positions)
    kept = before.cell.any(axis=1)
    np.testing.assert_array_equal(atoms.cell[kept], before.cell[kept])
    is_open = before.pbc & before.cell.any(axis=1)
    for cutoff in (6.0, 12.0):
        same = edges(atoms, atoms.pbc, cutoff) == edges(atoms, is_open, cutoff)
        assert same == (vacuum is None or cutoff < vacuum)
    assert describe_vacuum(counts, "periodic_made") == made
    assert counts["periodic_made"] == 1
    assert counts["narrow_vacuum"] == (vacuum is not None)


def crystal(pbc: tuple) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.pbc = pbc
    return atoms


def parallel() -> Atoms:
    return Atoms("C2", [(0, 0, 0), (0, 1.3, 0)], cell=[[3, 0, 0], [6, 0, 0], [0, 0, 20]], pbc=SLAB)


@pytest.mark.parametrize(
    ("atoms", "reason"),
    [
        (crystal(SLAB), "1.8 Å of vacuum along cell vector 2, at least 8 Å are needed"),
        (Atoms("C", cell=[0, 0, 0], pbc=True), "its cell is zero"),
        (Atoms("C", cell=[0, 0, 0], pbc=SLAB), "its cell is zero"),
        (parallel(), "its cell vectors are parallel"),
        (slab(3.0), "at least 8 Å are needed"),
    ],
)
def test_structures_that_say_too_little(atoms, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        settle_boundaries(atoms, Counter())
    assert "--pbc TTT" in str(caught.value)
    assert "--pbc FFF" in str(caught.value)


def test_forced_boundaries():
    counts = Counter()
    water, atom, copper = molecule("H2O"), Atoms("He"), crystal((0, 0, 0))
    for atoms in (water, atom, copper):
        settle_boundaries(atoms, counts, "TTT")
        assert atoms.pbc.all()
    assert np.diag(water.cell).tolist() == np.diag(atom.cell).tolist() == [15, 15, 15]
    np.testing.assert_array_equal(copper.cell, bulk("Cu", cubic=True).cell)
    assert (counts["boxed"], counts["narrow_vacuum"]) == (3, 0)
    assert describe_vacuum(counts, "boxed") == "with 13 to 15 Å of vacuum"
    atoms = slab(9.0)
    settle_boundaries(atoms, counts, "FFF")
    assert not atoms.pbc.any()
    assert counts["opened"] == 1


def read(path: Path) -> list:
    from fairchem.core.datasets.lmdb_dataset import LmdbDataset

    dataset = LmdbDataset({"src": str(path)})
    return [dataset[i] for i in range(len(dataset))]


def test_conversion_of_a_mixed_set(tmp_path):
    """A slab with pbc T T F, one with T T T, a molecule in a box and an atom without."""
    boxed = molecule("CO")
    boxed.center(vacuum=7.0)
    boxed.pbc = False
    frames = [slab(9.0), slab(None), *slabs(1), boxed, Atoms("O")]
    for frame in frames:
        if frame.calc is None:
            label(frame, -1.0, np.full((len(frame), 3), 0.1))
    ase.io.write(tmp_path / "a.traj", frames)
    out = tmp_path / "out"
    refused = refusal("convert", tmp_path / "a.traj", "--out", out)
    assert refused.startswith(
        "expected structures with periodic boundaries or without, got 3 with and 2 without"
    )
    output = run("convert", tmp_path / "a.traj", "--pbc", "TTT", "--out", out)
    assert (
        "2 structures periodic in some directions only, or without a cell vector: periodic in all "
        "now, with 14 to 16 Å of vacuum along the others"
    ) in output
    assert "2 structures without periodic boundaries: periodic now, with 14 to 15 Å" in output
    assert "no more than" not in output
    for record, frame in zip(read(out), frames, strict=True):
        assert "pbc" not in record
        assert torch.linalg.det(record.cell[0]) != 0
        np.testing.assert_allclose(record.force, frame.calc.results["forces"], rtol=1e-6)
        shift = (record.pos.numpy() - frame.positions) @ np.linalg.inv(record.cell[0].numpy())
        np.testing.assert_allclose(shift, shift.round(), atol=1e-5)  # by whole cell vectors
    output = run("convert", tmp_path / "a.traj", "--pbc", "FFF", "--out", tmp_path / "open")
    assert "3 structures with periodic boundaries, which --pbc FFF takes away" in output
    assert not any(record.pbc.any() for record in read(tmp_path / "open"))


def test_narrow_vacuum_is_a_warning(tmp_path):
    frame = label(slab(6.0), -1.0, np.ones((13, 3)))
    ase.io.write(tmp_path / "a.traj", frame)
    warning = "1 structures of these with no more than 12 Å of vacuum"
    assert warning in run("convert", tmp_path / "a.traj", "--out", tmp_path / "out")
    options = ["--cutoff", "6", "--out", tmp_path / "six"]
    assert "no more than" not in run("convert", tmp_path / "a.traj", *options)
