"""Data sets in ``.aselmdb``: what ASE reads, what the data commands say, equal bytes, bad files."""

from __future__ import annotations

import shutil
from pathlib import Path

import ase.db
import ase.io
import lmdb
import numpy as np
import pytest
import torch
import yaml
from helpers.labelled import label, molecules, slabs, write_traj
from helpers.program import refused_data, run_data, run_program
from helpers.written import contents, info
from torch_geometric.data import Data

pytest.importorskip("ase_db_backends")

from dens.data.demo import make_demo_data
from dens.data.store.by_format import open_folder
from dens.data.store.folders import LmdbFolder
from dens.safe.pickles import BadRecord

ASELMDB = ("--format", "aselmdb")


def convert(source: Path, out: Path, *options: object) -> str:
    return run_data("convert", source, "--out", out, *options)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, Path]:
    """One source in both formats, in several files."""
    folder = tmp_path_factory.mktemp("both")
    write_traj(folder / "a.traj", 25)
    outs = folder / "lmdb", folder / "aselmdb"
    split = ("--split", "by-block", "--block", 1, "--references", "fit", "--shard-size", 8)
    for out in outs:
        convert(folder / "a.traj", out, *split, "--cutoff", 5, "--format", out.name)
    return outs


def faults(folder: Path) -> str:
    """What ``dens data check`` says of a folder with errors."""
    status, output = run_program("data", "check", folder)
    assert status == 1, output
    return output


def fields(data: Data) -> dict:
    """The fields of a record, with its labels under the names of aselmdb."""
    names = {"y": "energy", "force": "forces"}
    return {names.get(name, name): value for name, value in data.to_dict().items()}


def test_records_are_those_of_lmdb(both):
    for split in ("train", "val"):
        one, two = (open_folder(out / split) for out in both)
        assert len(one) == len(two) > 1
        for i in range(len(one)):
            expected, found = fields(one[i]), fields(two[i])
            assert found.keys() == expected.keys() | {"pbc"}
            assert found["energy"] == expected["energy"]
            for name, value in expected.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(found[name].to(value.dtype), value), name
        arrays = [np.load(out / split / "metadata.npz") for out in both]
        assert arrays[0].files == arrays[1].files == ["natoms", "neighbors"]
        assert all((arrays[0][name] == arrays[1][name]).all() for name in arrays[0].files)
    assert len(list((both[1] / "train").glob("data.000?.aselmdb"))) > 1
    assert (info(both[0])["format"], info(both[1])["format"]) == ("lmdb", "aselmdb")
    one, two = ({**info(out), "format": ""} for out in both)
    assert one == two


def test_ase_reads_structures_with_labels_and_identifiers(both):
    data = open_folder(both[1] / "train")[3]
    with ase.db.connect(both[1] / "train" / "data.0000.aselmdb", readonly=True) as database:
        row = database.get(4)
        assert len(database) == 8
    atoms = row.toatoms()
    np.testing.assert_array_equal(atoms.positions.astype("f4"), data.pos)
    np.testing.assert_array_equal(atoms.calc.results["forces"].astype("f4"), data.forces)
    assert atoms.calc.results["energy"] == data.energy
    assert atoms.pbc.all()
    assert atoms.get_tags().tolist() == data.tags.tolist()
    assert atoms.constraints[0].index.tolist() == np.flatnonzero(data.fixed).tolist()
    assert (row.data.sid, row.data.fid) == (data.sid, data.fid)


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers(both, tmp_path):
    write_traj(tmp_path / "a.traj", 25)
    split = ("--split", "by-block", "--block", 1, "--references", "fit", "--shard-size", 8)
    more = ("--cutoff", 5, "--workers", 2)
    convert(tmp_path / "a.traj", tmp_path / "out", *split, *ASELMDB, *more)
    assert contents(tmp_path / "out") == contents(both[1])


def test_other_structures_are_kept_whole(tmp_path):
    """Stress, structures that are open, and structures without labels."""
    rng = np.random.default_rng(0)
    stressed = slabs(2)
    for atoms in stressed:
        atoms.calc.results["stress"] = rng.normal(size=6)
    ase.io.write(tmp_path / "stressed.traj", stressed)
    ase.io.write(tmp_path / "open.traj", molecules(2))
    convert(tmp_path / "stressed.traj", tmp_path / "stressed", *ASELMDB)
    convert(tmp_path / "open.traj", tmp_path / "open", *ASELMDB)
    convert(tmp_path / "open.traj", tmp_path / "bare", *ASELMDB, "--labels", "none")
    voigt = stressed[1].calc.results["stress"]
    stress = open_folder(tmp_path / "stressed")[1].stress
    np.testing.assert_allclose(stress[0, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]], voigt, rtol=1e-6)
    free = open_folder(tmp_path / "open")[1]
    assert not free.pbc.any()
    assert not free.cell.any()
    assert free.natoms == 9
    assert not {"energy", "forces"} & set(open_folder(tmp_path / "bare")[0].keys())
    assert "structures only" in run_data("check", tmp_path / "bare")


def test_check_finds_what_it_finds_in_lmdb(both, tmp_path):
    one, two = (run_data("check", out) for out in both)
    assert one.replace(str(both[0]), "") == two.replace(str(both[1]), "")
    frames = slabs(3)
    labels = frames[1].calc.results
    frames[1].positions[-1] = frames[1].positions[-2] + 0.1
    label(frames[1], labels["energy"], labels["forces"])
    ase.io.write(tmp_path / "a.traj", frames)
    convert(tmp_path / "a.traj", tmp_path / "bad", *ASELMDB)
    assert "atoms closer than" in faults(tmp_path / "bad")


def test_stats_are_in_the_form_of_fairchem_2(tmp_path):
    frames = write_traj(tmp_path / "a.traj", 12)
    ase.io.write(tmp_path / "b.traj", [*frames, *slabs(6, seed=1, oxygens=2)])
    convert(tmp_path / "b.traj", tmp_path / "data" / "train", *ASELMDB)
    out = tmp_path / "stats.yaml"
    printed = run_data("stats", tmp_path / "data", "--out", out)
    config = yaml.safe_load(out.read_text())
    assert list(config) == ["normalizer_rmsd", "elem_refs"]
    forces = np.concatenate([f.calc.results["forces"][3:] for f in frames])  # the free atoms
    assert config["normalizer_rmsd"] == pytest.approx(np.sqrt((forces**2).mean()), rel=0.1)
    refs = np.array(config["elem_refs"])
    assert refs.shape == (119,)
    assert set(np.flatnonzero(refs)) == {8, 29}
    assert 9 * refs[29] + refs[8] == pytest.approx(9 * -3.5 - 7.25, abs=1)
    assert "root mean square" in printed
    assert "--forces-like-energy" in refused_data(
        "stats", out.parent / "data", "--forces-like-energy"
    )


def test_demo(tmp_path):
    sizes = {"train_frames": 5, "val_frames": 3}
    make_demo_data(tmp_path / "a", **sizes, store="aselmdb")
    make_demo_data(tmp_path / "b", **sizes)
    for split in ("train", "val_id", "val_ood"):
        one, two = open_folder(tmp_path / "a" / split), open_folder(tmp_path / "b" / split)
        assert [d.energy for d in one] == [d.y for d in two]
        assert [d.md for d in one] == [d.md for d in two]
    assert refused_data("demo", tmp_path / "c", "--relaxed", *ASELMDB).startswith(
        "--relaxed is for"
    )


def test_bad_files_are_refused_in_one_line(both, tmp_path):
    shutil.copytree(both[1] / "train", tmp_path / "data")
    file = tmp_path / "data" / "data.0000.aselmdb"
    with lmdb.open(str(file), subdir=False) as environment, environment.begin(write=True) as change:
        change.put(b"3", b"junk")
        change.delete(b"5")
    data = open_folder(tmp_path / "data")
    for number in (2, 4):
        with pytest.raises(BadRecord, match=rf"data.0000.aselmdb, record {number + 1} \(index"):
            data[number]
    assert "2 records cannot be read" in faults(tmp_path / "data")
    with lmdb.open(str(file), subdir=False) as environment, environment.begin(write=True) as change:
        change.put(b"nextid", b"junk")
    assert "not a database of ase-db-backends" in refused_data("check", tmp_path / "data")
    file.write_bytes(file.read_bytes()[:5000])
    assert "cut off" in refused_data("check", tmp_path / "data")
    shutil.copy(both[0] / "train" / "data.0000.lmdb", tmp_path / "data")
    assert "expected one format" in refused_data("check", tmp_path / "data")
    assert isinstance(open_folder(both[0] / "train"), LmdbFolder)
