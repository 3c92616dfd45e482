"""OC20's download and LMDB folders made of it: energies, identifiers, and the mark ``md``."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.labelled import slabs, write_oc20, write_traj
from helpers.trainers import DENS, trainer_config
from torch_geometric.data import Data

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.cli import data as command
from dens.data.sources.oc20 import says_md


def run(*arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def refusal(*arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code != 0, result.output
    return result.output.removeprefix("Error: ").rstrip()


def read(path: Path) -> list:
    from fairchem.core.datasets.lmdb_dataset import LmdbDataset

    dataset = LmdbDataset({"src": str(path)})
    return [dataset[i] for i in range(len(dataset))]


def make_download(folder: Path, packed: bool = False, first: int = 0, n: int = 2) -> list:
    """`n` pairs of files of three frames each; the reference of a frame is -30 minus its number."""
    frames = []
    for number in range(n):
        frames.append(slabs(3, seed=first + number))
        lines = [f"random{1000 + first + number},frame{10 * i},{-30 - i}.25" for i in range(3)]
        write_oc20(folder, number, frames[-1], lines, packed)
    return [frame for file in frames for frame in file]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ref_energy", [False, True])
def test_energies_and_identifiers(tmp_path, packed, ref_energy):
    frames = make_download(tmp_path / "s2ef_train", packed)
    options = ["--ref-energy"] if ref_energy else []
    output = run("oc20", tmp_path / "s2ef_train", "--out", tmp_path / "out", *options)
    assert "6 structures" in output
    assert "0 of them from MD, 6 not" in output
    records = read(tmp_path / "out")
    assert [(r.sid, r.fid) for r in records] == [
        (sid, fid) for sid in (1000, 1001) for fid in (0, 10, 20)
    ]
    for i, (frame, record) in enumerate(zip(frames, records, strict=True)):
        reference = -30.25 - i % 3 if ref_energy else 0.0
        assert record.y == pytest.approx(frame.calc.results["energy"] - reference, abs=1e-6)
        np.testing.assert_allclose(record.force, frame.calc.results["forces"], atol=1e-6)
        assert record.fixed.nonzero().flatten().tolist() == [0, 1, 2]
        assert record.tags.tolist() == frame.get_tags().tolist()
        assert record.md == 0
    metadata = np.load(tmp_path / "out" / "metadata.npz")
    assert metadata["natoms"].tolist() == [10] * 6
    assert metadata["md"].tolist() == [0] * 6
    written = json.loads((tmp_path / "out" / "dens_info.json").read_text())["energy"]
    assert written == (
        "minus the reference energy of the text files" if ref_energy else "as in the source"
    )


def test_pairs_come_in_the_order_of_their_numbers(tmp_path):
    make_download(tmp_path / "in", n=11)
    run("oc20", tmp_path / "in", "--out", tmp_path / "out", "--shard-size", 7)
    assert [r.sid for r in read(tmp_path / "out")] == [1000 + i for i in range(11) for _ in "abc"]
    assert len(list((tmp_path / "out").glob("*.lmdb"))) == 6


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("s2ef_md/0.extxyz", True),
        ("MD_3/random1", True),
        ("a/md.xyz", True),
        ("random12,frame3", False),
        ("cmd/mdf/amd64", False),
    ],
)
def test_the_word_md(origin, expected):
    assert says_md(origin) is expected


def test_molecular_dynamics_are_told_by_names(tmp_path):
    make_download(tmp_path / "md" / "s2ef_train")  # a folder above the given one says nothing
    make_download(tmp_path / "s2ef_md", first=5)
    sources = [tmp_path / "md" / "s2ef_train", tmp_path / "s2ef_md"]
    output = run("oc20", *sources, "--out", tmp_path / "out")
    assert "6 of them from MD, 6 not" in output
    assert [r.md for r in read(tmp_path / "out")] == [0] * 6 + [1] * 6
    assert np.load(tmp_path / "out" / "metadata.npz")["md"].tolist() == [0] * 6 + [1] * 6
    run("oc20", *sources, "--md", "no", "--out", tmp_path / "none")
    assert {r.md for r in read(tmp_path / "none")} == {0}


def test_molecular_dynamics_are_told_by_the_text(tmp_path):
    lines = ["md/random7,frame0,-1.5", "random7,frame1,-1.5"]
    write_oc20(tmp_path / "in", 0, slabs(2), lines)
    run("oc20", tmp_path / "in", "--out", tmp_path / "out")
    assert [(r.sid, r.md) for r in read(tmp_path / "out")] == [(7, 1), (7, 0)]


def write_lmdb(path: Path, sids: list[int]) -> None:
    """An LMDB file as fairchem's preprocessing writes it: names of its own, no md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = lmdb.open(str(path), subdir=False, map_size=1 << 24)
    with file, file.begin(write=True) as transaction:
        for key, sid in enumerate(sids):
            pos = torch.full((2, 3), float(sid))
            record = Data(pos=pos, energy=-1.0, natoms=2, sid=sid, fid=key, edge_index=None)
            transaction.put(str(key).encode(), pickle.dumps(record, protocol=-1))
        transaction.put(b"length", pickle.dumps(len(sids)))


def test_logs_beside_lmdb_files(tmp_path):
    source = tmp_path / "all_md"  # its name is no part of an origin here
    write_lmdb(source / "data.0000.lmdb", [4, 5])
    write_lmdb(source / "data.0001.lmdb", [6])
    (source / "data_log.0000.txt").write_text("relax/random4,frame0\ns2ef/md/random5,frame1\n")
    (source / "data_log.0001.txt").write_text("random6,frame0\n")
    output = run("oc20", source, "--out", tmp_path / "out", "--shard-size", 2)
    assert "1 of them from MD, 2 not" in output
    records = read(tmp_path / "out")
    assert [(r.sid, r.fid, r.md, r.energy) for r in records] == [
        (4, 0, 0, -1.0),
        (5, 1, 1, -1.0),
        (6, 0, 0, -1.0),
    ]
    assert [float(r.pos[0, 0]) for r in records] == [4, 5, 6]
    metadata = np.load(tmp_path / "out" / "metadata.npz")
    assert (metadata["natoms"].tolist(), metadata["md"].tolist()) == ([2, 2, 2], [0, 1, 0])


def test_logs_that_do_not_tell(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write_lmdb(source / "data.0000.lmdb", [4, 5])
    log = source / "data_log.0000.txt"
    assert refusal("oc20", source, "--out", out) == (
        f"{log} is missing, which tells the MD structures: or give --md yes|no"
    )
    log.write_text("random4,frame0\nrandom5,frame1\n")
    assert refusal("oc20", source, "--out", out) == (
        f"{source}: no line of its data_log files says md, so they may not tell it: "
        "give --md yes|no"
    )
    run("oc20", source, "--md", "yes", "--out", out)
    assert [r.md for r in read(out)] == [1, 1]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("md/random4,frame0\n", "data_log.0000.txt: expected a line for each of 2 records, got 1"),
        (
            "md/random4,frame0\nrandom6,frame1\n",
            "data.0000.lmdb, frame 1: its sid is 5, but its line of the log is 'random6,frame1'",
        ),
    ],
)
def test_logs_that_do_not_fit(tmp_path, log, message):
    write_lmdb(tmp_path / "in" / "data.0000.lmdb", [4, 5])
    (tmp_path / "in" / "data_log.0000.txt").write_text(log)
    refused = refusal("oc20", tmp_path / "in", "--out", tmp_path / "out")
    assert refused == f"{tmp_path / 'in'}/{message}"


def test_marks_reach_the_trainer_and_their_absence_is_refused(tmp_path):
    from dens.fairchem1 import DeNSTrainer

    make_download(tmp_path / "md", n=2)
    run("oc20", tmp_path / "md", "--out", tmp_path / "marked")
    write_traj(tmp_path / "a.traj", 6)
    run("convert", tmp_path / "a.traj", "--out", tmp_path / "unmarked")
    settings = {**DENS, "prob": 1.0, "corrupt_ratio": None, "exclude_md": True}

    trainer = DeNSTrainer(**trainer_config(str(tmp_path / "marked"), dens=settings))
    batch = next(iter(trainer.train_loader))
    assert batch.md.tolist() == [1, 1, 1, 1]
    trainer.model.train()
    trainer._forward(batch)
    assert not batch.noise_mask.any()
    with pytest.raises(ValueError, match="exclude_md"):
        DeNSTrainer(**trainer_config(str(tmp_path / "unmarked"), dens=settings))
