"""Test the demo data set: determinism, splits, marks and labels."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.data import atomic_numbers
from ase.optimize import BFGS
from helpers.program import run_program

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.bulk.bulk_demo import make_bulk_demo
from dens.data.demo import HELD_OUT_METAL, MAX_FORCE, METALS, make_demo_data
from dens.data.equilibria import slabs
from dens.data.equilibria.slabs import make_relaxed_demo

SIZES = {"train_frames": 70, "val_frames": 15}
MAKERS = (make_demo_data, make_bulk_demo, make_relaxed_demo)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("demo") / "out", seed=3, **SIZES)


@pytest.fixture(scope="module")
def splits(demo):
    """Read the records of each split with fairchem."""
    from fairchem.core.datasets.lmdb_dataset import LmdbDataset

    datasets = {name: LmdbDataset({"src": str(demo.path / name)}) for name in demo.splits}
    return {name: [dataset[i] for i in range(len(dataset))] for name, dataset in datasets.items()}


def files(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_same_seed_same_bytes(demo, tmp_path):
    make_demo_data(tmp_path / "same", seed=3, **SIZES)
    make_demo_data(tmp_path / "other", seed=4, train_frames=1, val_frames=1)
    assert files(tmp_path / "same") == files(demo.path)
    other = files(tmp_path / "other")
    assert other.keys() == files(demo.path).keys()
    assert not set(other.values()) & set(files(demo.path).values())


def test_splits_have_their_frames_and_metals(demo, splits):
    assert {name: len(records) for name, records in splits.items()} == {
        "train": 70,
        "val_id": 15,
        "val_ood": 15,
    }
    for name, records in splits.items():
        allowed = {HELD_OUT_METAL} if name == "val_ood" else set(METALS)
        slab_atoms = torch.cat([data.atomic_numbers[data.tags < 2] for data in records])
        assert set(slab_atoms.int().tolist()) <= {atomic_numbers[metal] for metal in allowed}
        assert len({(data.sid, data.fid) for data in records}) == len(records)
    sids = [{data.sid for data in records} for records in splits.values()]
    assert len(set.union(*sids)) == sum(len(ids) for ids in sids)
    energies = [{data.y for data in records} for records in splits.values()]
    assert not energies[0] & energies[1]


def test_marks_of_atoms_and_frames(demo, splits):
    for name, records in splits.items():
        metadata = np.load(demo.path / name / "metadata.npz")
        assert metadata["natoms"].tolist() == [len(data.pos) for data in records]
        assert metadata["md"].tolist() == [data.md for data in records]
        assert {data.md for data in records} == {0, 1}
        for data in records:
            z = data.pos[:, 2]
            fixed = data.fixed == 1
            assert 4 <= fixed.sum() < len(z) - 4
            assert set(data.tags[fixed].tolist()) == {0}
            assert z[fixed].max() < z[data.tags == 1].min()
            assert 1 <= (data.tags == 2).sum() <= 2
            assert 16 <= data.natoms <= 30
        moved = [
            torch.equal(a.pos[a.fixed == 1], b.pos[b.fixed == 1])
            for a, b in pairwise(records)
            if a.sid == b.sid
        ]
        assert moved
        assert all(moved)


def to_atoms(data) -> Atoms:
    atoms = Atoms(
        data.atomic_numbers.int().numpy(), data.pos.numpy(), cell=data.cell[0].numpy(), pbc=True
    )
    atoms.calc = EMT()
    return atoms


def test_labels_are_emts(splits):
    for records in splits.values():
        references = {}
        for data in records:
            atoms = to_atoms(data)
            np.testing.assert_allclose(data.force, atoms.get_forces(), atol=2e-4)
            reference = atoms.get_potential_energy() - data.y
            assert references.setdefault(data.sid, reference) == pytest.approx(reference, abs=1e-4)


def relaxed_energy(atoms: Atoms) -> float:
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=0.01)
    return atoms.get_potential_energy()


def test_energies_are_adsorption_energies(splits):
    h2, n2, h2o, co = (relaxed_energy(molecule(name)) for name in ("H2", "N2", "H2O", "CO"))
    per_atom = {1: h2 / 2, 7: n2 / 2, 8: h2o - h2, 6: co - (h2o - h2)}
    for data in {data.sid: data for data in splits["val_ood"] if not data.md}.values():
        slab = to_atoms(data)[(data.tags < 2).numpy()]
        slab.set_constraint(FixAtoms(mask=data.fixed[data.tags < 2].bool().numpy()))
        adsorbate = data.atomic_numbers[data.tags == 2].int().tolist()
        expected = to_atoms(data).get_potential_energy() - relaxed_energy(slab)
        expected -= sum(per_atom[z] for z in adsorbate)
        assert data.y == pytest.approx(expected, abs=0.02)


def test_forces_and_energies_are_of_useful_size(demo):
    for split in demo.splits.values():
        statistics = split.statistics()
        largest = [np.linalg.norm(forces, axis=1).max() for forces in split.forces]
        assert min(largest) < 0.5
        assert 2 < max(largest) <= MAX_FORCE
        assert 0.2 < statistics["force_rms"] < 2
        assert abs(statistics["energy_mean"]) < 2
        assert 0.1 < statistics["energy_std"] < 3
        assert split.md_frames in range(split.frames // 3, split.frames)


def test_readme_gives_seed_and_statistics(demo):
    text = (demo.path / "README.txt").read_text(encoding="utf-8")
    assert "Seed: 3\n" in text
    assert demo.table() in text


def test_failure_leaves_nothing(tmp_path):
    def stop(split: str, done: int, total: int) -> None:
        if split == "val_id":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_demo_data(tmp_path / "out", train_frames=1, val_frames=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "argument", "message"),
    [
        *((make, {"seed": -1}, "seed must be at least 0, got -1") for make in MAKERS),
        *(
            (make, {"train_frames": 0}, "train_frames must be at least 1, got 0")
            for make in MAKERS[:2]
        ),
    ],
)
def test_bad_arguments_are_refused(tmp_path, make, argument, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "out", **argument)
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"^{tmp_path} already exists"):
        make_demo_data(tmp_path)


def test_command_makes_the_data_and_prints_the_table(tmp_path, monkeypatch):
    few = functools.partial(make_demo_data, train_frames=4, val_frames=2)
    monkeypatch.setattr("dens.data.demo.make_demo_data", few)
    status, output = run_program("data", "demo", tmp_path / "demo")
    assert status == 0, output
    assert [line.split()[:2] for line in output.splitlines()[1:]] == [
        ["train", "4"],
        ["val_id", "2"],
        ["val_ood", "2"],
    ]
    assert "\r" not in output  # progress is for terminals


# ---- equilibria ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def relaxed(tmp_path_factory):
    out = tmp_path_factory.mktemp("relaxed") / "out"
    return make_relaxed_demo(out, seed=3, systems={"train": 2, "val_id": 1, "val_ood": 1})


def test_equilibria_are_those_of_the_systems_of_the_demo(splits, relaxed):
    """At rest in EMT, without labels, from the first frames of the labelled data."""
    from fairchem.core.datasets.lmdb_dataset import LmdbDataset

    n = 0
    for name, records in splits.items():
        firsts = {data.sid: data for data in records if data.fid == 0}
        for data in LmdbDataset({"src": str(relaxed.path / name)}):
            n += 1
            assert "y" not in data
            assert "force" not in data
            free = (data.fixed == 0).numpy()
            first = to_atoms(firsts[data.sid])
            moved = first.positions - data.pos_start.numpy()
            whole = np.linalg.solve(first.cell.array.T, moved.T).T
            np.testing.assert_allclose(whole, whole.round(), atol=1e-5)
            assert np.abs(to_atoms(data).get_forces()[free]).max() < 0.011
            assert to_atoms(data).get_potential_energy() < first.get_potential_energy()
            np.testing.assert_allclose(data.pos[~free], data.pos_start[~free], atol=1e-5)
    assert n == sum(len(split.moved) for split in relaxed.splits.values()) == 4


def test_equilibria_that_are_not_reached_are_counted(relaxed, tmp_path, monkeypatch):
    reached = iter([False, True, True, True])
    monkeypatch.setattr(slabs, "relax_to_equilibrium", lambda atoms: next(reached))
    systems = {"train": 2, "val_id": 1, "val_ood": 1}
    summary = make_relaxed_demo(tmp_path / "out", seed=3, systems=systems)
    assert [split.dropped for split in summary.splits.values()] == [1, 0, 0]
    assert relaxed.table() in (relaxed.path / "README.txt").read_text()
