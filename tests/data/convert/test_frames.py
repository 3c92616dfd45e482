"""Test ``dens data convert``: records, splits, references, and resuming an interrupted run."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import signal
import subprocess
import sys
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from helpers.labelled import (
    REFERENCES,
    label,
    molecules,
    slabs,
    write_outcar,
    write_traj,
    write_vasprun,
)
from helpers.paths import ROOT
from helpers.program import run_data as run
from helpers.program import run_program
from helpers.written import contents, info, read

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.convert.frames import convert
from dens.data.convert.labels import LabelRules
from dens.data.convert.splits import Splitting
from dens.data.references import References, load_references
from dens.data.units import all_electron_energy, parse_units, suspected_units

# converts with two workers, and hangs after 60 frames
STOPPING = """
import sys, time
from dens.data.convert.frames import convert
from dens.data.convert.labels import LabelRules

def stop(done, total):
    if done >= 60:
        print("stopped", flush=True)
        time.sleep(1000)

if __name__ == "__main__":
    convert([sys.argv[1]], sys.argv[2], LabelRules(), shard_size=20, workers=2, progress=stop)
"""


def to_atoms(batch) -> Atoms:
    """Convert a batch of one structure back to ASE."""
    assert len(batch.natoms) == 1
    atoms = Atoms(
        batch.atomic_numbers.int().numpy(), batch.pos.numpy(), cell=batch.cell[0].numpy(), pbc=True
    )
    atoms.set_tags(batch.tags.numpy())
    return label(atoms, batch.y.item(), batch.force.numpy())


def test_round_trip_keeps_everything(tmp_path):
    from fairchem.core.datasets.lmdb_dataset import data_list_collater

    frames = write_traj(tmp_path / "run.traj", 3)
    run("convert", tmp_path / "run.traj", "--out", tmp_path / "out")
    for number, (frame, record) in enumerate(zip(frames, read(tmp_path / "out"), strict=True)):
        assert (record.sid, record.fid) == ("run", number)
        batch = data_list_collater([record], otf_graph=True)
        atoms = to_atoms(batch)
        assert atoms.numbers.tolist() == frame.numbers.tolist()
        np.testing.assert_allclose(atoms.cell.array, frame.cell.array, rtol=1e-6)
        moved = frame.cell.scaled_positions(atoms.positions - frame.positions)
        np.testing.assert_allclose(moved, moved.round(), atol=1e-6)  # by whole cell vectors
        assert atoms.get_tags().tolist() == frame.get_tags().tolist()
        assert batch.fixed.nonzero().flatten().tolist() == frame.constraints[0].index.tolist()
        np.testing.assert_allclose(atoms.get_forces(), frame.calc.results["forces"], rtol=1e-6)
        assert record.y == frame.calc.results["energy"]


def test_open_structures_have_no_cell(tmp_path):
    frames = molecules(2)
    frames[0].cell = [20, 20, 20]  # a box, but no periodic boundaries
    ase.io.write(tmp_path / "run.extxyz", frames)
    output = run("convert", tmp_path / "run.extxyz", "--out", tmp_path / "out")
    assert "1 structures without periodic boundaries: their cells are not kept" in output
    for frame, record in zip(frames, read(tmp_path / "out"), strict=True):
        assert not record.pbc.any()
        assert not record.cell.any()
        np.testing.assert_allclose(record.pos, frame.positions, atol=1e-6)


def write_db(path: Path, frames: list[Atoms]) -> None:
    with ase.db.connect(path) as database:
        for frame in frames:
            database.write(frame)


def write_packed(path: Path, frames: list[Atoms]) -> None:
    ase.io.write(path.with_suffix(""), frames)
    pack = {".xz": lzma, ".gz": gzip, ".bz2": bz2}[path.suffix].compress
    path.write_bytes(pack(path.with_suffix("").read_bytes()))
    path.with_suffix("").unlink()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.traj", ase.io.write),
        ("a.xyz", lambda path, frames: ase.io.write(path, frames, format="extxyz")),
        ("a.extxyz.xz", write_packed),
        ("a.extxyz.gz", write_packed),
        ("a.xyz.bz2", write_packed),
        ("a.db", write_db),
        ("a.json", ase.io.write),  # a kind that only ASE knows
    ],
)
def test_formats(tmp_path, name, write):
    frames = slabs(4)
    write(tmp_path / name, frames)
    run("convert", tmp_path / name, "--out", tmp_path / "out")
    records = read(tmp_path / "out")
    energies = [frame.calc.results["energy"] for frame in frames]
    assert [record.y for record in records] == pytest.approx(energies, rel=1e-9)
    for frame, record in zip(frames, records, strict=True):
        np.testing.assert_allclose(record.force, frame.calc.results["forces"], atol=1e-6)
        assert record.fixed.sum() == 3


def test_vasp_folders(tmp_path):
    write_vasprun(tmp_path / "runs" / "a" / "vasprun.xml")
    write_outcar(tmp_path / "runs" / "a" / "OUTCAR")  # the same calculation
    write_outcar(tmp_path / "runs" / "b" / "OUTCAR")
    output = run("convert", tmp_path / "runs", "--out", tmp_path / "out")
    first, second = read(tmp_path / "out")
    assert (first.sid, second.sid) == ("a/vasprun", "b/OUTCAR")
    assert first.y == second.y == -7.45
    for record in (first, second):
        assert torch.equal(record.force, torch.tensor([[0.1, 0, -0.5], [-0.1, 0, 0.5]]))
    assert first.fixed.tolist() == [1, 0]
    # inferred tags are reported
    assert first.tags.tolist() == [0, 1]
    assert second.tags.tolist() == [0, 0]
    assert "1 structures without tags: fixed atoms have tag 0 now, free ones 1" in output
    assert "1 structures without tags and fixed atoms: all their atoms have tag 0 now" in output


def test_npz_in_both_layouts(tmp_path):
    frames = molecules(3)
    pos = np.array([frame.positions for frame in frames])
    energy = np.array([frame.calc.results["energy"] for frame in frames]) * units.mol / units.kcal
    forces = np.array([frame.calc.results["forces"] for frame in frames]) * units.mol / units.kcal
    z = frames[0].numbers
    np.savez(tmp_path / "a.npz", R=pos, E=energy[:, None], F=forces, z=z)
    np.savez(tmp_path / "b.npz", coords=pos, energies=energy, forces=forces, nuclear_charges=z)
    source = [tmp_path / "a.npz", tmp_path / "b.npz"]
    run("convert", *source, "--units", "kcal/mol", "--out", tmp_path / "out")
    for frame, record in zip([*frames, *frames], read(tmp_path / "out"), strict=True):
        assert record.y == pytest.approx(frame.calc.results["energy"], abs=1e-9)
        np.testing.assert_allclose(record.force, frame.calc.results["forces"], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "energy", "length"),
    [
        ("eV-Å", 1.0, 1.0),
        ("kcal/mol", 0.0433641, 1.0),
        ("meV", 0.001, 1.0),
        ("hartree-bohr", 27.211386, 0.529177),
    ],
)
def test_units(tmp_path, name, energy, length):
    (frame,) = slabs(1)
    scaled = frame.copy()
    scaled.set_cell(frame.cell.array / length)
    scaled.positions = frame.positions / length
    results = frame.calc.results
    label(scaled, results["energy"] / energy, results["forces"] * length / energy)
    ase.io.write(tmp_path / "a.traj", scaled)
    run("convert", tmp_path / "a.traj", "--units", name, "--out", tmp_path / "out")
    (record,) = read(tmp_path / "out")
    assert record.y == pytest.approx(results["energy"], rel=1e-6)
    np.testing.assert_allclose(record.force, results["forces"], atol=1e-5)
    np.testing.assert_allclose(record.cell[0], frame.cell.array, atol=1e-5)
    assert info(tmp_path / "out")["units"].lower() == name.lower().replace("å", "a")


# Total energies, in Hartree, of calculations with all electrons
@pytest.mark.parametrize(
    ("numbers", "hartree"),
    [([8, 1, 1], -76.4), ([6] * 6 + [1] * 6, -232.2), ([6, 6, 8] + [1] * 6, -154.9)],
)
def test_all_electron_energies_reveal_their_units(numbers, hartree):
    assert all_electron_energy(numbers) == pytest.approx(hartree * units.Hartree, rel=0.05)
    for name in ("kcal/mol", "meV", "Hartree-Bohr"):
        energy = hartree * units.Hartree / parse_units(name).energy
        assert suspected_units(numbers, energy) == name
    assert suspected_units(numbers, hartree * units.Hartree) is None
    assert suspected_units(numbers, -6.0 * len(numbers)) is None  # as plane-wave codes give them


def test_fitted_references_are_subtracted(tmp_path):
    for i, (metal, oxygens) in enumerate([("Cu", 1), ("Cu", 2), ("Au", 1), ("Au", 3)]):
        write_traj(tmp_path / "in" / f"{i}.traj", 50, seed=i, metal=metal, oxygens=oxygens)
    out = tmp_path / "out"
    run("convert", tmp_path / "in", "--references", "fit", "--out", out)
    references = load_references(out / "references.npz")
    for symbol, expected in REFERENCES.items():
        number = Atoms(symbol).numbers[0]
        assert references.coeff[number] == pytest.approx(expected, abs=0.3)
        assert info(out)["references"]["coeff"][symbol] == references.coeff[number]
    assert abs(np.mean([record.y for record in read(out)])) < 1e-4


def test_references_come_before_float32(tmp_path):
    """In float32, -900 eV would lose the 1e-7 eV that this test looks for."""
    coeff = np.zeros(100)
    coeff[29], coeff[8] = -100.0, -7.0
    coeff[79] = 4e11  # absent, as the published files mark it
    np.savez(tmp_path / "ref.npz", coeff=coeff)
    (frame,) = slabs(1)
    label(frame, -907.0 + 1e-7, frame.calc.results["forces"])
    ase.io.write(tmp_path / "a.traj", frame)
    out = tmp_path / "out"
    run("convert", tmp_path / "a.traj", "--references", tmp_path / "ref.npz", "--out", out)
    assert np.float32(read(out)[0].y) == pytest.approx(1e-7, rel=1e-4)
    with pytest.raises(ValueError, match=r"no reference energy for H, Au in .*ref\.npz"):
        load_references(tmp_path / "ref.npz").energy(np.array([79, 29, 1]))


def test_fit_refuses_elements_it_never_saw():
    coeff = np.full(119, np.nan)
    coeff[1] = -1.0
    references = References(coeff, "the fit")
    assert references.energy(np.array([1, 1])) == -2.0
    with pytest.raises(ValueError, match="no reference energy for He in the fit"):
        references.energy(np.array([1, 2]))


def test_split_by_system(tmp_path):
    for i in range(10):
        write_traj(tmp_path / "in" / f"{i}.traj", 3, seed=i)
    options = ["--split", "by-system", "--fractions", "train=0.6,val=0.2,test=0.2"]
    output = run("convert", tmp_path / "in", "--out", tmp_path / "out", *options)
    sids = {}
    for name, systems in (("train", 6), ("val", 2), ("test", 2)):
        records = read(tmp_path / "out" / name)
        sids[name] = {record.sid for record in records}
        assert len(sids[name]) == systems
        assert f"out/{name}: {3 * systems} structures" in output
        assert info(tmp_path / "out")["splits"][name]["records"] == 3 * systems
        metadata = np.load(tmp_path / "out" / name / "metadata.npz")
        assert metadata["natoms"].tolist() == [10] * 3 * systems
    assert len(set.union(*sids.values())) == 10


def test_split_by_a_key(tmp_path):
    groups = np.repeat(np.arange(5), 4)
    frames = [slabs(1, seed=i, origin=f"g{group}")[0] for i, group in enumerate(groups)]
    ase.io.write(tmp_path / "a.extxyz", frames)
    out = tmp_path / "out"
    options = ["--split", "by-system", "--group-key", "origin", "--fractions", "train=.8,val=.2"]
    run("convert", tmp_path / "a.extxyz", "--out", out, *options)
    train, val = ({r.sid for r in read(out / name)} for name in ("train", "val"))
    assert train | val == {f"g{i}" for i in range(5)}
    assert len(val) == 1
    assert [r.y for r in read(out / "val")] == [
        frame.calc.results["energy"] for frame in frames if frame.info["origin"] in val
    ]


@pytest.mark.parametrize(
    ("length", "option", "n_val"), [(20, [], 2), (6, ["--block", 6], 6)], ids=["default", "6"]
)
def test_split_by_block(tmp_path, length, option, n_val):
    write_traj(tmp_path / "a.traj", 90)
    write_traj(tmp_path / "b.traj", 30, seed=1)
    out = tmp_path / "out"
    options = ["--split", "by-block", "--fractions", "train=0.7,val=0.3", "--seed", 3]
    run("convert", tmp_path / "a.traj", tmp_path / "b.traj", "--out", out, *options, *option)
    frames = {name: [(r.sid, r.fid) for r in read(out / name)] for name in ("train", "val")}
    everything = [("a", i) for i in range(90)] + [("b", i) for i in range(30)]
    assert sorted(frames["train"] + frames["val"]) == everything
    blocks = {name: {(sid, fid // length) for sid, fid in ids} for name, ids in frames.items()}
    assert not blocks["train"] & blocks["val"]
    assert len(blocks["val"]) == n_val


def test_split_by_index_files(tmp_path):
    write_traj(tmp_path / "a.traj", 6)
    write_traj(tmp_path / "b.traj", 6, seed=1)
    (tmp_path / "train.txt").write_text("7\n0\n3\n")
    np.savez(tmp_path / "val.npz", numbers=[11, 1])
    out = tmp_path / "out"
    options = [
        *("--index", f"train={tmp_path / 'train.txt'}"),
        *("--index", f"val={tmp_path / 'val.npz'}"),
    ]
    run("convert", tmp_path / "a.traj", tmp_path / "b.traj", "--out", out, *options)
    assert [(r.sid, r.fid) for r in read(out / "train")] == [("a", 0), ("a", 3), ("b", 1)]
    assert [(r.sid, r.fid) for r in read(out / "val")] == [("a", 1), ("b", 5)]


def test_large_forces_on_free_atoms_are_dropped(tmp_path):
    frames = slabs(4)
    frames[1].calc.results["forces"][0] = [60, 0, 0]  # on a fixed atom
    frames[2].calc.results["forces"][5] = [0, 51, 0]
    ase.io.write(tmp_path / "a.traj", frames)
    output = run("convert", tmp_path / "a.traj", "--max-force", 50, "--out", tmp_path / "out")
    assert [record.fid for record in read(tmp_path / "out")] == [0, 1, 3]
    assert "3 structures, 1 dropped" in output


def test_number_of_neighbors_equals_fairchems(tmp_path):
    from fairchem.core.common.utils import radius_graph_pbc
    from torch_geometric.data import Batch

    write_traj(tmp_path / "a.traj", 3)
    out = tmp_path / "out"
    run("convert", tmp_path / "a.traj", "--cutoff", 6, "--max-neighbors", 20, "--out", out)
    batch = Batch.from_data_list(read(out))
    batch.pbc = torch.ones(3, 3, dtype=torch.bool)
    counts = radius_graph_pbc(batch, 6.0, 20, enforce_max_neighbors_strictly=True)[2]
    assert np.load(out / "metadata.npz")["neighbors"].tolist() == counts.tolist()
    assert counts.min() > 100


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers(tmp_path):
    for i in range(3):
        write_traj(tmp_path / "in" / f"{i}.traj", 10, seed=i, oxygens=i + 1)
    splitting = Splitting("by-block", {"train": 0.5, "val": 0.5})
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        options = {"splitting": splitting, "fit": True, "shard_size": 8, "workers": workers}
        convert([tmp_path / "in"], out, LabelRules(), **options)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    assert len(list((tmp_path / "out1" / "train").glob("*.lmdb"))) > 1
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out1", "out2"}


@pytest.mark.slow
def test_killed_conversion_is_resumed(tmp_path):
    write_traj(tmp_path / "a.traj", 150)
    out, pieces = tmp_path / "out", tmp_path / ".out.pieces"
    arguments = [sys.executable, "-c", STOPPING, str(tmp_path / "a.traj"), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout.readline() == b"stopped\n"
        finally:
            process.send_signal(signal.SIGKILL)
        # the workers, which hold the pipe, end without being killed
        assert process.communicate(timeout=60)[0] == b""
    assert not out.exists()
    finished = {file.stat().st_ino for file in pieces.glob("[!.]*/lmdb/data.0000.lmdb")}
    assert len(finished) == 2

    convert([tmp_path / "a.traj"], out, LabelRules(), shard_size=20)
    assert finished < {file.stat().st_ino for file in out.glob("*.lmdb")}  # not made again
    assert {path.name for path in tmp_path.iterdir()} == {"a.traj", "out"}
    convert([tmp_path / "a.traj"], tmp_path / "undisturbed", LabelRules(), shard_size=20)
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert [record.fid for record in read(out)] == list(range(150))


def stop_after_first(done: int, total: int) -> None:
    if done > 10:
        raise KeyboardInterrupt


def test_other_data_are_not_mixed_with_those_of_an_interrupted_run(tmp_path):
    write_traj(tmp_path / "a.traj", 20)
    options = {"shard_size": 10, "progress": stop_after_first}
    with pytest.raises(KeyboardInterrupt):
        convert([tmp_path / "a.traj"], tmp_path / "out", LabelRules(), **options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "a.traj").unlink()
    frames = write_traj(tmp_path / "a.traj", 20, seed=1)
    convert([tmp_path / "a.traj"], tmp_path / "out", LabelRules(), shard_size=10)
    energies = [frame.calc.results["energy"] for frame in frames]
    assert [record.y for record in read(tmp_path / "out")] == energies


def test_exit_status_of_the_program(tmp_path):
    write_traj(tmp_path / "a.traj", 2)
    words = ["data", "convert", tmp_path / "a.traj", "--out", tmp_path / "out"]
    assert run_program(*words)[0] == 0
    status, output = run_program(*words)
    assert status == 2
    assert output.startswith(f"error: {tmp_path / 'out'} already exists: ")


def test_real_oc20_relaxations(real_data, tmp_path):
    unpack = [sys.executable, real_data / "oc20" / "unpack.py", tmp_path / "in"]
    subprocess.run(unpack, check=True, capture_output=True)
    coeff = real_data / "linref" / "oc20_linref.npz"
    run("convert", tmp_path / "in", "--references", coeff, "--out", tmp_path / "out")
    references = np.load(coeff)["coeff"]
    records = iter(read(tmp_path / "out"))
    for path in sorted((tmp_path / "in").iterdir()):
        for frame in ase.io.iread(path):
            record = next(records)
            expected = frame.calc.results["energy"] - references[frame.numbers].sum()
            assert record.y == pytest.approx(expected, abs=1e-9)
            np.testing.assert_allclose(record.force, frame.calc.results["forces"], rtol=1e-6)
    assert next(records, None) is None
