"""Sources of data: lists, patterns, ASE databases, in training, `dens check` and `dens data`."""

from __future__ import annotations

import json

import ase.db
import lmdb
import numpy as np
import pytest
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from click.testing import CliRunner
from helpers.labelled import slabs
from helpers.trainers import trainer_config, write_dataset

from dens.cli import data as command
from dens.fairchem1 import DeNSTrainer
from dens.fairchem1.check.data import Split, open_splits
from dens.fairchem1.config.inputs import check_inputs
from dens.fairchem1.data.datasets import ConfigReader, open_dataset
from dens.runs.check.findings import Findings
from dens.settings import ConfigError


def run(*arguments: object):
    return CliRunner().invoke(command, [*map(str, arguments)], obj=ConfigReader)


def database(path, n: int = 8):
    with ase.db.connect(path) as db:
        for atoms in slabs(n):
            energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            db.write(atoms)
    return path


ASE = {"format": "ase_db", "a2g_args": {"r_energy": True, "r_forces": True, "r_fixed": True}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset("lmdb/a", n=5, seed=0)
    write_dataset("lmdb/b", n=3, seed=1)
    (tmp_path / "ase").mkdir()
    database("ase/a.db", 5)
    database("ase/b.json", 3)
    return tmp_path


SOURCES = {
    "list": ({}, ["lmdb/b", "lmdb/a"]),
    "list of a file": ({}, ["lmdb/a/data.0000.lmdb", "lmdb/b"]),
    "pattern": ({}, "lmdb/*"),
    "database": (ASE, "ase/a.db"),
    "json": (ASE, "ase/b.json"),
    "folder of databases": (ASE, "ase"),
    "pattern of databases": (ASE, "ase/*.db"),
    "list of databases": (ASE, ["ase/a.db", "ase/b.json"]),
}


@pytest.mark.parametrize(("settings", "src"), SOURCES.values(), ids=SOURCES)
def test_training_and_all_commands_read_the_same(folder, settings, src):
    config = trainer_config("x", optim={"batch_size": 2, "max_epochs": 1})
    train = {**config["dataset"]["train"], **settings, "src": src}
    if settings:
        del train["key_mapping"]
    config["dataset"] = {"train": train, "val": {"src": src}}
    check_inputs({"mode": "train", "dataset": config["dataset"]})
    expected = len(open_dataset(src, train))
    assert expected == {"ase/a.db": 5, "ase/*.db": 5, "ase/b.json": 3}.get(str(src), 8)
    (folder / "c.yml").write_text(yaml.safe_dump(config))
    result = run("check", "--config", "c.yml", "--json")
    reports = json.loads(result.output)
    assert result.exit_code == 0, result.output
    assert [report["structures"] for report in reports] == [expected] * 2
    if isinstance(src, str):
        (report,) = json.loads(run("check", src, "--config", "c.yml", "--json").output)
        assert report["structures"] == expected
    stats = run("stats", "--config", "c.yml")
    assert stats.exit_code == 0, stats.output
    assert f": {expected} structures" in stats.output
    findings = Findings()
    split: Split = open_splits(config, 0, findings)["train"]
    assert not findings.count("error")
    assert len(split.sample) == expected
    trainer = DeNSTrainer(**config)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == -(-expected // 2)


def test_joined_sets_name_their_records(folder):
    data = open_dataset(["lmdb/b", "lmdb/a"])
    assert (len(data), data.metadata_hasattr("natoms")) == (8, True)
    assert data.get_metadata("natoms", np.arange(8)).tolist() == [9] * 8
    assert data.where(6) == "lmdb/b/data.0000.lmdb, record 1 (index 6)"
    assert [int(data[i].sid) for i in range(8)] == [0, 1, 2, 3, 4, 0, 1, 2]
    (folder / "lmdb" / "b" / "metadata.npz").unlink()
    assert not open_dataset(["lmdb/b", "lmdb/a"]).metadata_hasattr("natoms")


def test_what_is_no_source_is_named(folder):
    (folder / "whole").mkdir()
    lmdb.open("whole/train").close()
    for path in ("whole", "whole/train"):
        result = run("check", path)
        assert result.exit_code == 1
        assert "name the file itself, whole/train/data.mdb" in result.output
    dataset = {"train": {"src": "whole/train"}}
    with pytest.raises(ConfigError, match=r"an LMDB that is a folder .* whole/train/data"):
        check_inputs({"mode": "train", "dataset": dataset})
    lmdb.open("empty.lmdb", subdir=False).close()
    for arguments, message in [
        (["ase/a.db"], "is a database of ASE: give --config"),
        (["empty.lmdb"], "empty.lmdb holds no records"),
        ([], "name a FOLDER, or a training config"),
        (["lmdb/a", "--measured", "-1"], "-1 is not in the range x>=0"),
    ]:
        for name in ("check", "stats"):
            result = run(name, *arguments)
            assert result.exit_code != 0
            assert message in result.output
