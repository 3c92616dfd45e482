"""Test ``--on-bad skip``: what is left out, what is said, and that the rest does not change."""

from __future__ import annotations

import lzma
import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from helpers.labelled import molecules, slabs, write_oc20, write_traj
from helpers.program import refused_data as refusal
from helpers.program import run_data as run
from helpers.written import contents, info, read
from torch_geometric.data import Data

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.convert.frames import convert
from dens.data.convert.labels import LabelRules
from dens.data.convert.splits import Splitting
from dens.data.store.lmdb import LmdbWriter


def write_bad(path: Path, n: int = 8, bad: tuple[int, ...] = (1, 4, 5), seed: int = 0) -> list:
    """Write frames of which some are bad: NaN forces, and for xyz an element that is none."""
    frames = slabs(n, seed=seed, origin="x")
    for number in bad:
        frames[number].calc.results["forces"][2, 0] = np.nan
    ase.io.write(path, frames)
    return frames


@pytest.mark.parametrize("name", ["a.traj", "a.extxyz", "a.db"])
def test_bad_frames_are_left_out_and_named(tmp_path, name):
    frames = write_bad(tmp_path / name)
    if name == "a.extxyz":  # unreadable in the middle, not only unsound
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        lines[12 * 4 + 3] = lines[12 * 4 + 3].replace("Cu", "Zz")
        (tmp_path / name).write_text("".join(lines))
    out = tmp_path / "out"
    output = run("convert", tmp_path / name, "--on-bad", "skip", "--out", out)
    good = [i for i in range(8) if i not in (1, 4, 5)]
    assert [record.fid for record in read(out)] == good
    assert [r.y for r in read(out)] == [frames[i].calc.results["energy"] for i in good]
    assert "5 structures, 3 bad left out" in output
    assert info(out)["on_bad"] == "skip"
    found = {entry["reason"]: entry for entry in info(out)["skipped"]}
    assert sum(entry["count"] for entry in found.values()) == 3
    nan = found["forces must be finite, got NaN or infinity"]
    assert nan["first"][0] == f"{tmp_path / name}, frame 1"
    if name == "a.extxyz":
        (unreadable,) = [entry for reason, entry in found.items() if "'Zz'" in reason]
        assert unreadable["first"] == [f"{tmp_path / name}, frame 4"]
    for entry in found.values():
        assert f"{entry['count']} bad frames left out: {entry['reason']}: " in output


def test_cut_files_are_left_out_and_named(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    write_bad(source / "a.traj", bad=())
    ase.io.write(source / "b.traj", slabs(4))
    raw = (source / "b.traj").read_bytes()
    (source / "b.traj").write_bytes(raw[: len(raw) // 3])
    (source / "c.xyz").touch()
    out = tmp_path / "out"
    output = run("convert", source, "--on-bad", "skip", "--out", out)
    assert len(read(out)) == 8
    assert output.count("1 bad files left out: ") == 2
    places = {entry["first"][0] for entry in info(out)["skipped_files"]}
    assert places == {str(source / "b.traj"), str(source / "c.xyz")}
    assert all(place in output for place in places)
    (tmp_path / "train.txt").write_text("0 1")
    index = ["--index", f"train={tmp_path / 'train.txt'}"]
    refused = refusal("convert", source, "--on-bad", "skip", *index, "--out", tmp_path / "o")
    assert "--index numbers the frames of all files, so it cannot be left out" in refused
    (source / "a.traj").unlink()
    refused = refusal("convert", source, "--on-bad", "skip", "--out", tmp_path / "o")
    assert refused.startswith(f"all 2 files are bad, the first: {source / 'b.traj'}: ")


@pytest.mark.parametrize("end", ["cut", "other text"])
def test_frames_before_a_cut_are_taken(tmp_path, end):
    frames = write_bad(tmp_path / "a.extxyz", bad=(1,))
    lines = (tmp_path / "a.extxyz").read_text().splitlines(keepends=True)
    per_frame = len(lines) // len(frames)
    if end == "cut":
        del lines[6 * per_frame + 4 :]
        why = "frame 6 is cut off after"
    else:
        lines.insert(6 * per_frame, "killed by the scheduler\n")
        why = f"line {6 * per_frame + 1}, frame 6: expected the number of atoms"
    (tmp_path / "a.extxyz").write_text("".join(lines))
    write_traj(tmp_path / "b.traj", 2)
    paths = [tmp_path / "a.extxyz", tmp_path / "b.traj"]
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        options = ["--shard-size", 4, "--workers", workers, "--references", "fit"]
        output = run("convert", *paths, "--on-bad", "skip", "--out", out, *options)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    found = [(record.sid, record.fid) for record in read(out)]
    assert found == [*(("a", i) for i in (0, 2, 3, 4, 5)), ("b", 0), ("b", 1)]
    assert "7 structures, 2 bad left out" in output
    (line,) = [line for line in output.splitlines() if why in line]
    assert line.startswith("1 bad frames left out: ")
    assert line.endswith(f"the file is left out from there on: {paths[0]}, frame 6")
    assert refusal("convert", *paths, "--out", tmp_path / "o").startswith(f"{paths[0]}: {why}")
    (tmp_path / "train").write_text("0 2")
    index = ["--index", f"train={tmp_path / 'train'}", "--on-bad", "skip"]
    assert "--index numbers the frames of all files" in refusal(
        "convert", *paths, *index, "--out", tmp_path / "o"
    )


def test_a_trajectory_with_a_damaged_frame(tmp_path):
    write_traj(tmp_path / "a.traj", 8)
    raw = bytearray((tmp_path / "a.traj").read_bytes())
    starts = [match.start() for match in re.finditer(rb'\{"pbc"', raw)]  # of all but the first
    raw[starts[4] : starts[4] + 5] = b"#####"
    (tmp_path / "a.traj").write_bytes(raw)
    output = run("convert", tmp_path / "a.traj", "--on-bad", "skip", "--out", tmp_path / "out")
    assert [record.fid for record in read(tmp_path / "out")] == [0, 1, 2, 3, 4, 6, 7]
    assert "1 bad frames left out: " in output
    assert f"{tmp_path / 'a.traj'}, frame 5" in output


def test_packed_and_unpacked_files(tmp_path):
    write_traj(tmp_path / "in" / "a.extxyz", 3)
    raw = (tmp_path / "in" / "a.extxyz").read_bytes()
    (tmp_path / "in" / "a.extxyz.xz").write_bytes(lzma.compress(raw))
    (tmp_path / "in" / "b.extxyz.xz").write_bytes(lzma.compress(raw))
    output = run("convert", tmp_path / "in", "--out", tmp_path / "out")
    assert [record.sid for record in read(tmp_path / "out")] == ["a"] * 3 + ["b"] * 3
    assert "left out, since the unpacked file lies beside it: a.extxyz.xz\n" in output


def test_all_frames_bad(tmp_path):
    path = tmp_path / "a.traj"
    write_bad(path, n=3, bad=(0, 1, 2))
    assert refusal("convert", path, "--on-bad", "skip", "--out", tmp_path / "o") == (
        f"the output is empty: all of its 3 frames were dropped, at {path}, frame 0 since forces "
        "must be finite, got NaN or infinity"
    )
    group = ["--split", "by-system", "--group-key", "nothing"]
    refused = refusal("convert", path, "--on-bad", "skip", *group, "--out", tmp_path / "o")
    assert refused == "all 3 frames are bad: none has the group of its system"


def test_bytes_depend_neither_on_workers_nor_on_the_bad(tmp_path):
    """The fit of references and the splits are those of the good frames alone."""
    for i in range(3):
        write_bad(tmp_path / f"{i}.traj", n=10, bad=(2 * i + 1,), seed=i)
    splitting = Splitting("by-block", {"train": 0.5, "val": 0.5}, block=5)
    options = {"splitting": splitting, "fit": True, "shard_size": 8, "on_bad": "skip"}
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        convert(sorted(tmp_path.glob("*.traj")), out, LabelRules(), workers=workers, **options)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    assert sum(entry["count"] for entry in info(tmp_path / "out1")["skipped"]) == 3

    (tmp_path / "good").mkdir()
    for i in range(3):
        frames = write_bad(tmp_path / "good" / f"{i}.traj", n=10, bad=(), seed=i)
        frames.pop(2 * i + 1)
        ase.io.write(tmp_path / "good" / f"{i}.traj", frames)
    convert([tmp_path / "good"], tmp_path / "o", LabelRules(), fit=True)
    convert(
        sorted(tmp_path.glob("*.traj")), tmp_path / "all", LabelRules(), fit=True, on_bad="skip"
    )
    skipped, good = (np.load(tmp_path / n / "references.npz")["coeff"] for n in ("all", "o"))
    np.testing.assert_array_equal(skipped, good)
    assert [r.y for r in read(tmp_path / "o")] == [r.y for r in read(tmp_path / "all")]


def test_frames_without_their_group(tmp_path):
    frames = slabs(6)
    for number, frame in enumerate(frames):
        if number != 3:
            frame.info["mid"] = f"g{number // 2}"
    ase.io.write(tmp_path / "a.extxyz", frames)
    options = ["--split", "by-system", "--group-key", "mid", "--fractions", "train=.7,val=.3"]
    out = tmp_path / "out"
    output = run("convert", tmp_path / "a.extxyz", *options, "--on-bad", "skip", "--out", out)
    assert "1 bad frames left out: expected the key 'mid' in its info" in output
    assert len(read(out / "train")) + len(read(out / "val")) == 5


def test_oc20_pairs(tmp_path):
    frames = slabs(3)
    frames[1].calc.results["forces"][0, 0] = np.inf
    write_oc20(tmp_path / "in", 0, frames, [f"random7,frame{i},-1.5" for i in range(3)])
    write_oc20(tmp_path / "in", 1, slabs(2), ["random8,frame0,-1.5"])  # a line is lacking
    write_oc20(tmp_path / "in", 2, slabs(1), ["random9,frame0"])  # a reference is lacking
    out = tmp_path / "out"
    output = run("oc20", tmp_path / "in", "--ref-energy", "--on-bad", "skip", "--out", out)
    assert [(r.sid, r.fid) for r in read(out)] == [(7, 0), (7, 2)]
    assert output.count("1 bad frames left out: ") == 3
    assert "expected a line for each of the 2 frames" in output
    assert "expected a reference energy in its line of text" in output
    assert f"{tmp_path / 'in' / '0.extxyz'}, frame 1" in output


def test_oc20_files_that_are_cut_off_or_alone(tmp_path):
    source = tmp_path / "in"
    for number in range(5):
        lines = [f"random{number},frame{i},-1.5" for i in range(3)]
        write_oc20(source, number, slabs(3), lines, packed=number == 3)
    text = (source / "1.extxyz").read_text().splitlines(keepends=True)
    (source / "1.extxyz").write_text("".join(text[: len(text) // 3 + 5]))  # in its second frame
    (source / "2.txt").unlink()
    raw = (source / "3.txt.xz").read_bytes()
    (source / "3.txt.xz").write_bytes(raw[: len(raw) // 2])
    packed = lzma.compress((source / "4.extxyz").read_bytes())
    (source / "4.extxyz.xz").write_bytes(packed)
    out = tmp_path / "out"
    missing = f"{source}/2.txt is missing: expected 2.extxyz and 2.txt (or .xz) side by side"
    assert refusal("oc20", source, "--out", out) == missing
    output = run("oc20", source, "--on-bad", "skip", "--out", out)
    found = [(record.sid, record.fid) for record in read(out)]
    assert found == [*((0, i) for i in range(3)), (1, 0), *((4, i) for i in range(3))]
    assert f"{source}: left out, since the unpacked file lies beside it: 4.extxyz.xz\n" in output
    assert "7 structures, 2 bad left out" in output
    assert "2 bad frames left out: frame 1 is cut off after " in output
    assert output.count("1 bad files left out: ") == 2
    places = {place for entry in info(out)["skipped_files"] for place in entry["first"]}
    assert places == {f"{source}/2.extxyz", f"{source}/3.txt.xz"}
    for number in (0, 1, 4):
        (source / f"{number}.txt").unlink()
    refused = refusal("oc20", source, "--on-bad", "skip", "--out", tmp_path / "o")
    assert refused.startswith("all 5 files are bad, the first: ")


def test_oc20_lmdb_files_that_are_cut_off(tmp_path):
    record = Data(pos=torch.zeros(20_000, 3), energy=-1.0, natoms=20_000, sid=1, fid=0, md=1)
    with LmdbWriter(tmp_path / "in", shard_size=2) as writer:
        for _ in range(6):
            writer.write_bytes(LmdbWriter.encode(record), natoms=20_000)
    path = tmp_path / "in" / "data.0001.lmdb"
    path.write_bytes(path.read_bytes()[:100_000])
    options = ["--md", "no", "--out", tmp_path / "out"]
    assert refusal("oc20", tmp_path / "in", *options).startswith(f"{path} is cut off: it has ")
    output = run("oc20", tmp_path / "in", "--on-bad", "skip", *options)
    assert len(read(tmp_path / "out")) == 4
    assert f"1 bad files left out: {path} is cut off: it has 100000 bytes of " in output


def test_oc20_records(tmp_path):
    record = Data(pos=torch.zeros(2, 3), energy=-1.0, natoms=2, sid=1, fid=0, md=1)
    with LmdbWriter(tmp_path / "in") as writer:
        for payload in (LmdbWriter.encode(record), b"junk", LmdbWriter.encode(record)):
            writer.write_bytes(payload, natoms=2)
    options = ["--md", "no", "--out", tmp_path / "out"]
    path = tmp_path / "in" / "data.0000.lmdb"
    assert refusal("oc20", tmp_path / "in", *options).startswith(f"{path}, frame 1: ")
    output = run("oc20", tmp_path / "in", "--on-bad", "skip", *options)
    assert [r.md for r in read(tmp_path / "out")] == [0, 0]
    assert "1 bad frames left out: " in output
    assert f"{path}, frame 1" in output
    assert "2 structures had another mark md, which is replaced" in output


@pytest.mark.parametrize("kind", ["npz", "xyz"])
def test_md17(tmp_path, kind):
    frames = molecules(12)
    frames[3].calc.results["forces"][0, 0] = np.nan
    frames[7].calc.results["forces"][0, 0] = np.nan
    path = tmp_path / f"ethanol.{kind}"
    if kind == "npz":
        arrays = {
            "R": np.array([f.positions for f in frames]),
            "F": np.array([f.calc.results["forces"] for f in frames]),
            "E": np.array([f.calc.results["energy"] for f in frames]),
        }
        np.savez(path, z=frames[0].numbers, **arrays)
    else:
        ase.io.write(path, frames, format="extxyz")
    for name, numbers in (("train", range(5)), ("val", range(5, 8)), ("test", range(8, 11))):
        (tmp_path / name).write_text("\n".join(map(str, numbers)))
    index = [o for n in ("train", "val", "test") for o in (f"--{n}-index", tmp_path / n)]
    command = ["md17", "ethanol", "--source", path, "--units", "eV-A", *index]
    out = tmp_path / "out"
    refused = refusal(*command, "--out", out)
    assert "forces must be finite, got NaN or infinity in frame 3" in refused
    output = run(*command, "--on-bad", "skip", "--out", out)
    fids = {name: [r.fid for r in read(out / name)] for name in ("train", "val", "test")}
    assert fids == {"train": [0, 1, 2, 4], "val": [5, 6], "test": [8, 9, 10]}
    assert "2 bad frames left out: forces must be finite" in output
    assert "1 frames are in no split: left out" in output
    assert info(out)["skipped"][0]["count"] == 2


def test_frames_in_no_index_file(tmp_path):
    write_traj(tmp_path / "a.traj", 6)
    (tmp_path / "train.txt").write_text("0 1 5")
    index = ["--index", f"train={tmp_path / 'train.txt'}"]
    output = run("convert", tmp_path / "a.traj", *index, "--out", tmp_path / "out")
    assert "3 frames are in no index file: left out" in output
