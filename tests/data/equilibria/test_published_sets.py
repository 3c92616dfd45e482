"""Test ``dens data qm7x`` and ``dens data qm9`` on small files in the published layouts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.equilibria import (
    UNCHARACTERIZED,
    equilibria,
    moved,
    qm9_text,
    write_qm7x,
    write_qm9,
)
from helpers.program import refused_data as refusal
from helpers.program import run_data as run
from helpers.written import contents, info, read

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.equilibria.molecule_set import choose_sizes
from dens.data.equilibria.qm7x import PUBLISHED as QM7X
from dens.data.equilibria.qm9 import PUBLISHED as QM9

SPLITS = ("train", "val", "test")


@pytest.fixture
def qm7x(tmp_path):
    """Eleven molecules in two files, one packed: two isomers each, and displaced structures."""
    folder = tmp_path / "qm7x"
    folder.mkdir()
    structures = iter(equilibria(22))
    molecules = {}
    for m in range(1, 12):
        own = {f"Geom-m{m}-i{i}-c1-opt": next(structures) for i in (1, 2)}
        displaced = moved(list(own.values()))
        own |= {f"Geom-m{m}-i1-c1-{n + 1}": atoms for n, atoms in enumerate(displaced)}
        molecules[str(m)] = own
    items = list(molecules.items())
    write_qm7x(folder / "1000.xz", dict(items[:6]))
    write_qm7x(folder / "2000.hdf5", dict(items[6:]))
    return folder, molecules


def test_qm7x(qm7x, tmp_path):
    """Only equilibria are taken; isomers stay together; duplicates are left out."""
    folder, molecules = qm7x
    duplicates = tmp_path / "DupMols.dat"
    duplicates.write_text("Geom-m3-i2-c1-opt\nGeom-m99-i1-c1-opt\n\n")
    options = ["--duplicates", duplicates, "--train", 6, "--val", 2]
    output = run("qm7x", folder, *options, "--out", tmp_path / "out")
    run("qm7x", *sorted(folder.iterdir()), *options, "--out", tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    splits = {name: read(tmp_path / "out" / name) for name in SPLITS}
    of = {name: {r.sid.split("-")[0] for r in records} for name, records in splits.items()}
    assert [len(part) for part in of.values()] == [6, 2, 3]
    assert len(set().union(*of.values())) == 11
    records = {record.sid: record for part in splits.values() for record in part}
    assert len(records) == 21
    for sid, record in records.items():
        atoms = molecules[sid.split("-")[0][1:]][f"Geom-{sid}-opt"]
        assert record.atomic_numbers.tolist() == atoms.numbers.tolist()
        np.testing.assert_allclose(record.pos, atoms.positions, atol=1e-6)
        assert "y" not in record
        assert not record.pbc.any()
    assert "1 structures of the 2 listed as duplicates: left out" in output
    assert "22 conformations are not at equilibrium: left out" in output
    assert info(tmp_path / "out")["labels"] == "none"
    assert run("check", tmp_path / "out").count("structures only") == 3


def test_qm7x_is_scaled(qm7x, tmp_path):
    output = run("qm7x", qm7x[0], "--out", tmp_path / "out")
    assert "the published sizes (train 4500, val 1250) were scaled" in output
    assert "no --duplicates DupMols.dat: duplicates are kept" in output
    assert sum(len(read(tmp_path / "out" / name)) for name in SPLITS) == 22


def test_qm7x_that_cannot_be_read(qm7x, tmp_path):
    folder, _ = qm7x
    out = ["--out", tmp_path / "o"]
    (folder / "1000.hdf5").write_bytes(b"no HDF5")  # taken before the packed one
    assert refusal("qm7x", folder, *out).split("error: ")[-1].count(f"{folder / '1000.hdf5'}: ")
    packed = (folder / "1000.xz").read_bytes()
    (folder / "cut.xz").write_bytes(packed[: len(packed) // 2])
    assert f"{folder / 'cut.xz'}: " in refusal("qm7x", folder / "cut.xz", *out)
    files = [folder / "2000.hdf5"] * 2
    assert "each conformation once, got 10 twice: is a file doubled?" in refusal(
        "qm7x", *files, *out
    )
    write_qm7x(folder / "only.hdf5", {"1": {"Geom-m1-i1-c1-7": equilibria(1)[0]}})
    assert "whose names end in -opt, got none among 1" in refusal(
        "qm7x", folder / "only.hdf5", *out
    )
    (tmp_path / "list").write_text("Geom-m1-i1-c1-opt\nm2\n")
    options = ["--duplicates", tmp_path / "list", *out]
    assert "list: line 2: expected a name like Geom-m12" in refusal("qm7x", folder, *options)
    (tmp_path / "empty").mkdir()
    assert "expected files .hdf5, .h5, .xz, found none" in refusal("qm7x", tmp_path / "empty", *out)


@pytest.mark.parametrize("name", ["dsgdb9nsd.xyz.tar.bz2", "folder"])
def test_qm9(tmp_path, name):
    """Structures of one SMILES stay together, and the uncharacterized ones are left out."""
    frames = equilibria(24)
    smiles = {i: f"C{i // 2}" for i in range(1, 25)}
    write_qm9(
        tmp_path / name,
        {i: qm9_text(atoms, i, smiles[i]) for i, atoms in enumerate(frames, start=1)},
    )
    listed = tmp_path / "uncharacterized.txt"
    rows = "\n".join(f"     {i}   InChI=1S/{i}   InChI=1S/X" for i in (4, 9, 900))
    listed.write_text(UNCHARACTERIZED.format(rows=rows, count=3))
    options = ["--uncharacterized", listed, "--out", tmp_path / "out"]
    output = run("qm9", tmp_path / name, *options)
    splits = {part: read(tmp_path / "out" / part) for part in SPLITS}
    of = {part: {smiles[r.sid] for r in records} for part, records in splits.items()}
    assert [len(group) for group in of.values()] == [9, 1, 1]
    assert len(set().union(*of.values())) == 11
    records = {record.sid: record for part in splits.values() for record in part}
    assert not records.keys() & {4, 9}
    for sid, record in records.items():
        expected = frames[sid - 1].positions.copy()
        expected[0, 0] = 6.2e-6
        np.testing.assert_allclose(record.pos, expected, atol=1e-8, rtol=1e-6)
        assert record.atomic_numbers.tolist() == frames[sid - 1].numbers.tolist()
    assert "2 structures of the 3 listed as uncharacterized: left out" in output
    assert f"{22 - len(records)} structures are in no split: left out" in output
    assert "(train 55000, val 10000, test 10000) were scaled" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (qm9_text(equilibria(1)[0], 1, "O").replace("gdb", "xyz"), "as QM9 has them"),
        (qm9_text(equilibria(1)[0], 1, "O")[:60], "as QM9 has them"),
        (qm9_text(equilibria(1)[0], 2, "O"), "molecule 2 is there twice"),
    ],
)
def test_qm9_that_cannot_be_read(tmp_path, text, message):
    write_qm9(tmp_path / "a.tar.bz2", {1: text, 2: qm9_text(equilibria(1)[0], 2, "O")})
    refused = refusal("qm9", tmp_path / "a.tar.bz2", "--out", tmp_path / "o")
    assert refused.startswith(f"{tmp_path / 'a.tar.bz2'}, dsgdb9nsd_00000")
    assert message in refused


def test_lists_and_archives_that_are_none(tmp_path):
    (tmp_path / "a").write_text("nothing")
    out = ["--out", tmp_path / "o"]
    assert "expected a tar archive or a folder" in refusal("qm9", tmp_path / "a", *out)
    listed = ["--uncharacterized", tmp_path / "a"]
    assert "expected lines that begin with an index, got 0" in refusal(
        "qm9", tmp_path / "a", *listed, *out
    )
    (tmp_path / "a").write_text(UNCHARACTERIZED.format(rows="  7  InChI  InChI", count=3))
    assert "expected 3 lines that begin with an index, got 1" in refusal(
        "qm9", tmp_path / "a", *listed, *out
    )


@pytest.mark.parametrize(
    ("available", "given", "published", "sizes"),
    [
        (7000, {}, QM7X, (4500, 1250, 1250)),
        (5751, {}, QM7X, (4500, 1250, 1)),
        (575, {}, QM7X, (449, 124, 2)),
        (130_831, {}, QM9, (55_000, 10_000, 10_000)),
        (7500, {}, QM9, (5500, 1000, 1000)),
        (100, {"train": 50, "val": 20, "test": None}, QM7X, (50, 20, 30)),
        (100, {"train": 50, "val": 20, "test": 5}, QM9, (50, 20, 5)),
    ],
)
def test_sizes(available, given, published, sizes):
    assert tuple(choose_sizes(available, given, published).values()) == sizes


@pytest.mark.parametrize("given", [{"train": 100}, {"train": 0}, {"val": -1}, {"test": 99}])
def test_sizes_that_do_not_fit(given):
    with pytest.raises(ValueError, match="change --train, --val or --test"):
        choose_sizes(100, given, QM7X)
