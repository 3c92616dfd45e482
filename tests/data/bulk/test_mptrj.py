"""Test the conversion of files of MPtrj's layout."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from helpers.program import run_program
from helpers.stressed import as_mptrj, some_frames

from dens.data.bulk.mptrj import is_held_out
from dens.data.store.by_format import open_folder

pytest.importorskip("ijson")


@pytest.fixture(scope="module")
def frames():
    return some_frames(3, 4)


@pytest.fixture
def content(frames) -> dict:
    return {
        f"mp-{i}": {f"mp-{i}-0-{j}": as_mptrj(frames[4 * i + j]) for j in range(4)}
        for i in range(3)
    }


def convert(tmp_path, content, *options) -> tuple[int, str]:
    (tmp_path / "mptrj.json").write_text(json.dumps(content))
    return run_program(
        *("data", "mptrj", tmp_path / "mptrj.json", "--out", tmp_path / "out", "--val", "0.4"),
        *options,
    )


def test_records_of_both_splits(tmp_path, frames, content):
    status, output = convert(tmp_path, content)
    assert status == 0, output
    held_out = [i for i in range(3) if is_held_out(f"mp-{i}", 0.4, 0)]
    assert 0 < len(held_out) < 3
    found = {}
    for name in ("train", "val"):
        for record in open_folder(tmp_path / "out" / name):
            i = int(record.sid.removeprefix("mp-"))
            assert (i in held_out) == (name == "val")
            found[i, record.fid] = record
    assert len(found) == 12
    for (i, j), record in found.items():
        frame = frames[4 * i + j]
        assert record.y == pytest.approx(frame.energy)
        np.testing.assert_allclose(record.stress[0], frame.stress, atol=1e-6)
        np.testing.assert_allclose(record.force, frame.forces, atol=1e-6)
    assert "corrected energies; stress, in kbar with VASP's sign, is kept in eV/Å^3" in output
    md5 = hashlib.md5((tmp_path / "mptrj.json").read_bytes()).hexdigest()
    assert f"md5 of mptrj.json: {md5}" in output
    assert json.loads((tmp_path / "out" / "dens_info.json").read_text())["md5"] == md5


def test_other_energies(tmp_path, frames, content):
    assert convert(tmp_path, content, "--energy", "uncorrected")[0] == 0
    record = open_folder(tmp_path / "out" / "val")[0]
    frame = frames[4 * int(record.sid.removeprefix("mp-")) + record.fid]
    assert record.y == pytest.approx(frame.energy + 1.5)


def without(key):
    return lambda content: content["mp-1"]["mp-1-0-2"].pop(key)


def half_an_atom(content):
    content["mp-1"]["mp-1-0-2"]["structure"]["sites"][0]["species"][0]["occu"] = 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("stress"), "mptrj.json, mp-1-0-2: expected 'stress', got structure"),
        (without("corrected_total_energy"), "mp-1-0-2: expected 'corrected_total_energy'"),
        (half_an_atom, "mp-1-0-2: expected one whole atom on each site, got [{'element'"),
        (lambda content: content.update({"mp-1": 3}), "mp-1: expected frames by their id"),
    ],
    ids=["no stress", "no energy", "disordered", "another form"],
)
def test_bad_frames_are_named(tmp_path, content, change, message):
    change(content)
    status, output = convert(tmp_path, content)
    assert status == 2
    assert message in output
    assert not (tmp_path / "out").exists()


def test_bad_frames_can_be_left_out(tmp_path, content):
    half_an_atom(content)
    status, output = convert(tmp_path, content, "--on-bad", "skip")
    assert status == 0, output
    assert "1 bad frames left out: expected one whole atom" in output
    sizes = [len(open_folder(tmp_path / "out" / name)) for name in ("train", "val")]
    assert sum(sizes) == 11


def test_cut_off_and_other_files(tmp_path, content):
    status, output = convert(tmp_path, content, "--md5", "0" * 32)
    assert status == 2
    assert "mptrj.json: expected the MD5 000" in output
    path = tmp_path / "mptrj.json"
    path.write_text(path.read_text()[:-300])
    status, output = run_program("data", "mptrj", path, "--out", tmp_path / "out")
    assert status == 2
    assert "not the JSON of MPtrj, or cut off" in output
    assert not (tmp_path / "out").exists()
