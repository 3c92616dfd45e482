"""Test writing of LMDB folders: bytes, atomicity, and records that fairchem reads."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from helpers.paths import ROOT
from torch_geometric.data import Data

import dens.data.store.lmdb as lmdb_module
import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import atoms_to_data, pickle_record
from dens.files import atomic_folder

ENDLESS_WRITER = """
import sys
from dens.data.store.lmdb import LmdbWriter
with LmdbWriter(sys.argv[1], shard_size=300) as writer:
    for i in range(10**9):
        writer.write_bytes(b"x" * 3000, natoms=1)
        if i == 1000:
            print("writing", flush=True)
"""


def slab(seed: int = 0, calculator: bool = True) -> Atoms:
    """Make a small labelled slab with six fixed atoms, partly outside its cell."""
    rng = np.random.default_rng(seed)
    atoms = fcc111("Cu", (2, 3, 3), vacuum=6.0)
    atoms.pbc = True
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
    atoms.positions += rng.normal(scale=0.1, size=(18, 3))
    if calculator:
        labels = {"energy": float(rng.normal()), "forces": rng.normal(size=(18, 3))}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def records(n: int) -> list[Data]:
    return [atoms_to_data(slab(i), sid=f"random{i // 10}", fid=i, md=i % 2) for i in range(n)]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def write_blobs(path: Path, n: int, seed: int = 0, **kwargs: int) -> None:
    rng = np.random.default_rng(seed)
    with LmdbWriter(path, **kwargs) as writer:
        for i in range(n):
            writer.write_bytes(rng.bytes(rng.integers(10, 9000)), natoms=i)


def test_fairchem_reads_what_was_written(tmp_path):
    from fairchem.core.datasets.lmdb_dataset import LmdbDataset, data_list_collater

    written = records(25)
    with LmdbWriter(tmp_path / "train", shard_size=10) as writer:
        for data in written:
            writer.write(data, md=data.md)
    assert sorted(contents(tmp_path / "train")) == [
        "data.0000.lmdb",
        "data.0001.lmdb",
        "data.0002.lmdb",
        "metadata.npz",
    ]
    key_mapping = {"y": "energy", "force": "forces"}
    dataset = LmdbDataset({"src": str(tmp_path / "train"), "key_mapping": key_mapping})
    assert len(dataset) == 25
    np.testing.assert_array_equal(dataset.get_metadata("natoms", list(range(25))), [18] * 25)
    np.testing.assert_array_equal(dataset.get_metadata("md", list(range(25))), [0, 1] * 12 + [0])
    for i, data in enumerate(written):
        assert (dataset[i].energy, dataset[i].sid, dataset[i].fid) == (data.y, data.sid, i)
        assert torch.equal(dataset[i].forces, data.force)
        assert torch.equal(dataset[i].pos, data.pos)
    batch = data_list_collater([dataset[i] for i in range(3)], otf_graph=True)
    assert batch.natoms.tolist() == [18, 18, 18]
    assert batch.energy.shape == (3,)
    assert batch.forces.shape == batch.pos.shape == (54, 3)
    assert batch.cell.shape == (3, 3, 3)
    assert batch.md.tolist() == [0, 1, 0]


def test_record_has_the_fields_and_types_of_oc20():
    atoms = slab()
    data = atoms_to_data(atoms, sid=7, fid=3)
    types = {key: getattr(value, "dtype", type(value)) for key, value in data.to_dict().items()}
    assert types == {
        "pos": torch.float32,
        "cell": torch.float32,
        "atomic_numbers": torch.float32,
        "natoms": int,
        "tags": torch.int64,
        "fixed": torch.float32,
        "y": float,
        "force": torch.float32,
        "sid": int,
        "fid": int,
    }
    assert data.fixed.tolist() == (atoms.get_tags() == 3).tolist()
    assert data.tags.tolist() == atoms.get_tags().tolist()
    # forces on fixed atoms are kept, and atoms outside the cell are moved by whole cell vectors
    np.testing.assert_allclose(data.force, atoms.calc.results["forces"], rtol=1e-6)
    moved = np.linalg.solve(atoms.cell.T, (data.pos.double().numpy() - atoms.positions).T)
    np.testing.assert_allclose(moved, moved.round(), atol=1e-6)
    assert np.abs(moved.round()).max() == 1
    fractional = np.linalg.solve(atoms.cell.T, data.pos.double().numpy().T)
    assert fractional.min() > -1e-6
    assert fractional.max() < 1 + 1e-6


def test_given_labels_go_before_the_calculator():
    data = atoms_to_data(slab(), sid=0, fid=0, energy=-1.5, forces=np.ones((18, 3)))
    assert data.y == -1.5
    assert data.force.eq(1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pbc": (True, True, False)}, "expected pbc in all three directions"),
        ({"cell": np.zeros((3, 3))}, "a cell with a volume"),
        ({"calc": None}, "no energy or no forces"),
        ({"forces": np.zeros((3, 18))}, r"forces must be \(18, .*\), got shape \(3, 18\)"),
        ({"energy": float("nan")}, "energy must be finite"),
    ],
)
def test_unusable_structures_are_refused(change, message):
    atoms = slab()
    for name in change.keys() & {"pbc", "cell", "calc"}:
        setattr(atoms, name, change[name])
    labels = {name: change[name] for name in change.keys() & {"energy", "forces"}}
    with pytest.raises(ValueError, match=f"^structure sid=1 fid=2: .*{message}"):
        atoms_to_data(atoms, sid=1, fid=2, **labels)


def test_equal_records_give_equal_bytes():
    data = records(1)[0]
    data.tag = data.sid  # the same object twice, and a tensor that is a view of a larger one
    data.pos = torch.cat([data.pos, data.pos])[:18]
    expected = pickle_record(data)
    other = records(1)[0]
    other.tag = "".join(["random", "0"])
    assert pickle_record(other) == expected
    assert pickle_record(pickle.loads(expected)) == expected
    assert torch.equal(pickle.loads(expected).pos, data.pos)


def test_records_hold_plain_values_only():
    with pytest.raises(ValueError, match=r"record field extra must be a tensor.*got list"):
        pickle_record(Data(extra=[1, 2]))


def test_same_records_give_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_module, "MAP_SIZE", 1 << 18)  # so that the map has to grow
    for name in "ab":
        write_blobs(tmp_path / name, 1500, shard_size=1000)
        _ = bytearray(b"\xab" * (1 << 24))  # other contents for memory that is allocated next
    write_blobs(tmp_path / "c", 1500, seed=1, shard_size=1000)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")
    assert (tmp_path / "a" / "data.0000.lmdb").stat().st_size > 1 << 22
    # no time of writing in there either
    dates = [info.date_time for info in zipfile.ZipFile(tmp_path / "a/metadata.npz").infolist()]
    assert dates == [(1980, 1, 1, 0, 0, 0)]
    with lmdb.open(str(tmp_path / "a/data.0001.lmdb"), subdir=False, readonly=True) as shard:
        rng = np.random.default_rng(0)
        blobs = [rng.bytes(rng.integers(10, 9000)) for _ in range(1500)]
        assert shard.begin().get(b"499") == blobs[1499]
        assert pickle.loads(shard.begin().get(b"length")) == 500


def interrupted_write(path: Path) -> None:
    with LmdbWriter(path, shard_size=2) as writer:
        for _ in range(5):
            writer.write_bytes(b"x", natoms=1)
        raise KeyboardInterrupt


def inconsistent_write(path: Path) -> None:
    with LmdbWriter(path) as writer:
        writer.write_bytes(b"x", natoms=1, md=0)
        writer.write_bytes(b"x", natoms=1)


def test_exception_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(tmp_path / "train")
    assert list(tmp_path.iterdir()) == []


def test_killed_writer_leaves_no_folder_and_the_next_one_cleans_up(tmp_path):
    out = tmp_path / "train"
    command = [sys.executable, "-c", ENDLESS_WRITER, str(out)]
    root = ROOT
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
        try:
            assert process.stdout.readline() == b"writing\n"
            with pytest.raises(ValueError, match=f"^{out} is being written by another process$"):
                write_blobs(out, 3)
        finally:
            process.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert (tmp_path / ".train.partial" / "data.0002.lmdb").exists()
    write_blobs(out, 3)
    write_blobs(tmp_path / "undisturbed", 3)
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "undisturbed"]


def test_existing_output_is_refused_and_kept(tmp_path):
    out = tmp_path / "train"
    out.mkdir()
    (out / "mine").touch()
    with (
        pytest.raises(ValueError, match=f"^{out} already exists: remove it or choose another"),
        LmdbWriter(out),
    ):
        raise AssertionError("the block was entered")
    assert [path.name for path in tmp_path.rglob("*")] == ["train", "mine"]


def test_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=f"^cannot create {tmp_path}/file"),
        atomic_folder(tmp_path / "file" / "train"),
    ):
        pass


def test_empty_and_inconsistent_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected at least one record, got none"):
        write_blobs(tmp_path / "empty", 0)
    with pytest.raises(ValueError, match=r"expected \['md', 'natoms'\], got \['natoms'\]"):
        inconsistent_write(tmp_path / "mixed")
    assert list(tmp_path.iterdir()) == []
