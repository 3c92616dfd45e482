"""LMDB data sets: hostile files run no code; bad records are named or replaced."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets import data_list_collater, lmdb_dataset
from fairchem.core.datasets.base_dataset import create_dataset
from helpers.hostile import HOSTILE, payload, touch
from helpers.labelled import molecules, slabs
from helpers.trainers import trainer_config, write_dataset
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from dens.data.checked import CheckedRecords, checked, parse_on_bad
from dens.data.store.folders import LmdbFolder
from dens.data.store.lmdb import LmdbWriter, open_lmdb
from dens.data.store.records import atoms_to_data
from dens.data.survey.samples import FolderReader
from dens.fairchem1 import DeNSTrainer
from dens.fairchem1.data.safe_lmdb import SAFE_FORMATS, rename, use_safe_formats
from dens.safe.pickles import BadRecord
from dens.settings import ConfigError

KEYS = {"y": "energy", "force": "forces"}
LEVELS = {"energy": "system", "forces": "atom"}


pytestmark = pytest.mark.usefixtures("untrusting")


def load(src, name: str = "dens_lmdb", **config):
    return registry.get_dataset_class(name)({"src": str(src), "key_mapping": KEYS, **config})


def put(src, entries: dict[str, bytes | None]) -> Path:
    """Write entries into the file of a data set, or delete them."""
    path = Path(src, "data.0000.lmdb")
    with lmdb.open(str(path), subdir=False, lock=False) as file, file.begin(write=True) as txn:
        for key, value in entries.items():
            if value is None:
                txn.delete(key.encode())
            else:
                txn.put(key.encode(), value)
    return path


def change(src, number: int, **fields) -> Path:
    """Change fields of a record; None deletes a field."""
    with open_lmdb(Path(src, "data.0000.lmdb")) as file, file.begin() as txn:
        data = pickle.loads(txn.get(str(number).encode()))
    for name, value in fields.items():
        if value is None:
            del data[name]
        else:
            data[name] = value
    return put(src, {str(number): pickle.dumps(data)})


def assert_equal(found, expected):
    assert sorted(found.keys()) == sorted(expected.keys())
    for name, value in found.to_dict().items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(value, expected[name]), name


# ---- hostile files ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_entries(dataset, sentinel, name):
    path = put(dataset, {"3": payload(name, sentinel)})
    message = f"{path}, record 3 (index 3): asks for {HOSTILE[name][1]}, which such data do not"
    with pytest.raises(BadRecord, match=re.escape(message)):
        load(dataset)[3]
    put(dataset, {"length": payload(name, sentinel)})
    message = f"{path}: the entry length: asks for {HOSTILE[name][1]}, which such data do not need"
    for src in (dataset, path):
        with pytest.raises(ValueError, match=re.escape(message)):
            load(src)
    assert not sentinel.exists()


@pytest.mark.parametrize("name", ["dens_lmdb", "dens_oc22_lmdb"])
def test_other_hostile_files(dataset, sentinel, tmp_path, name):
    np.savez(tmp_path / "array.npz", coeff=np.array([touch(sentinel)], dtype=object))
    Path(tmp_path, "pickle.npz").write_bytes(pickle.dumps(touch(sentinel)))
    for file in ("array.npz", "pickle.npz"):
        with pytest.raises(ValueError, match=f"{file}.*allow_pickle="):
            load(dataset, name, lin_ref=str(tmp_path / file))
        shutil.copy(tmp_path / file, Path(dataset, "metadata.npz"))
        with pytest.raises(ValueError, match=r"metadata.npz cannot be read as arrays of numbers"):
            load(dataset, name).metadata_hasattr("natoms")
    assert not sentinel.exists()


def test_hostile_references_of_oc20(dataset, sentinel, tmp_path):
    Path(tmp_path, "ref.pkl").write_bytes(pickle.dumps({"random0": touch(sentinel)}))
    config = {"oc20_ref": str(tmp_path / "ref.pkl"), "train_on_oc20_total_energies": True}
    with pytest.raises(ValueError, match=r"asks for posix.system"):
        load(dataset, "dens_oc22_lmdb", **config)
    assert not sentinel.exists()


def test_fairchems_own_data_sets_stay_as_they_are(dataset, sentinel):
    """Only our classes restrict unpickling; fairchem's class runs the hostile entry."""
    put(dataset, {"3": payload("os.system", sentinel)})
    with pytest.raises(BadRecord):
        load(dataset)[3]
    assert lmdb_dataset.pickle is pickle
    with pytest.raises(AttributeError):
        load(dataset, "lmdb")[3]
    assert sentinel.exists()


def test_a_file_can_be_trusted(dataset, sentinel, monkeypatch):
    put(dataset, {"3": payload("os.system", sentinel)})
    monkeypatch.setenv("DENS_TRUST_FILES", "1")
    with pytest.raises(BadRecord, match="expected a Data of PyG, got int"):
        load(dataset)[3]
    assert sentinel.exists()


# ---- good files ------------------------------------------------------------------------------


def test_good_records_are_those_that_fairchem_reads(dataset):
    ours, theirs = load(dataset), load(dataset, "lmdb")
    assert len(ours) == len(theirs) == 8
    for i in range(8):
        assert_equal(ours[i], theirs[i])
    assert ours.get_metadata("natoms", [0, 5]) == theirs.get_metadata("natoms", [0, 5])
    file = load(Path(dataset, "data.0000.lmdb"), shard=1, total_shards=2)
    assert_equal(file[1], load(Path(dataset, "data.0000.lmdb"), "lmdb")[5])
    assert file.where(1) == f"{dataset}/data.0000.lmdb, record 5 (index 1)"


def test_converted_records(tmp_path):
    """Periodic records, and open ones, which have other fields."""
    records = [
        *(atoms_to_data(frame, sid="a", fid=0, md=True) for frame in slabs(2)),
        *(atoms_to_data(frame, sid=7, fid=np.int64(1)) for frame in molecules(2)),
    ]
    with LmdbWriter(tmp_path / "data") as writer:
        for record in records:
            writer.write(record)
    ours, theirs = CheckedRecords(load(tmp_path / "data"), LEVELS), load(tmp_path / "data", "lmdb")
    for i in range(4):
        assert_equal(ours[i], theirs[i])


def test_the_reader_without_fairchem_yields_the_same_records(tmp_path):
    with LmdbWriter(tmp_path / "data", shard_size=3) as writer:
        for i, frame in enumerate(slabs(8)):
            writer.write(atoms_to_data(frame, sid=0, fid=i))
    ours, theirs = LmdbFolder(tmp_path / "data"), load(tmp_path / "data", key_mapping=None)
    assert len(ours) == len(theirs) == 8
    for i in range(8):
        assert_equal(Data(**ours[i].to_dict(), id=theirs[i].id), theirs[i])
        assert ours.where(i) == theirs.where(i)
    assert FolderReader().metadata(ours)["natoms"].tolist() == [10] * 8
    put(tmp_path / "data", {"1": None})
    for path in (tmp_path / "data", tmp_path / "data" / "data.0000.lmdb"):
        with pytest.raises(BadRecord, match=r"record 1 \(index 1\): there is no record under this"):
            LmdbFolder(path)[1]


def test_real_frames(dataset, real_data):
    frames = real_data / "oc22" / "oc22_s2ef_16.pkl"
    records = pickle.loads(frames.read_bytes())
    put(dataset, {str(i): pickle.dumps(data) for i, data in enumerate(records[:8])})
    ours, theirs = CheckedRecords(load(dataset), LEVELS), load(dataset, "lmdb")
    for i in range(8):
        assert_equal(ours[i], theirs[i])


def test_records_without_a_length(dataset):
    put(dataset, {"length": None})
    assert len(load(dataset)) == 8


@pytest.mark.parametrize("length", [10**12, -1, 2.5, True, None])
def test_wrong_lengths(dataset, length):
    path = put(dataset, {"length": pickle.dumps(length)})
    message = f"{path}: the entry length must be the number of records, some 8, got {length}"
    with pytest.raises(ValueError, match=message):
        load(dataset)


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_files_that_are_cut_off(tmp_path, kept):
    path = Path(write_dataset(tmp_path / "large", n=40), "data.0000.lmdb")
    size = path.stat().st_size
    os.truncate(path, int(size * kept))
    with pytest.raises(ValueError, match=rf"{path} is cut off: it has \d+ bytes of {size}"):
        load(path.parent)
    path.write_bytes(b"no LMDB")
    with pytest.raises(ValueError, match=rf"{path}: not an LMDB file: "):
        load(path.parent)


def test_metadata_that_do_not_fit(dataset):
    np.savez(Path(dataset, "metadata.npz"), natoms=np.ones(3, int))
    with pytest.raises(ValueError, match=r"metadata.npz does not fit the records: Loaded metadata"):
        load(dataset).metadata_hasattr("natoms")


def test_formats_are_exchanged_in_all_splits():
    config = {
        "dataset": {"src": "a", "format": "trajectory_lmdb"},
        "val_dataset": {"src": "b"},
        "test_dataset": {"src": "c", "use_train_settings": False},
        "relax_dataset": {},
    }
    use_safe_formats(config)
    formats = [config[f"{name}dataset"].get("format") for name in ("", "val_", "test_", "relax_")]
    assert formats == ["dens_lmdb", "dens_lmdb", "dens_lmdb", None]
    config = {"dataset": {"src": "a", "format": "ase_db"}, "val_dataset": {"format": "oc22_lmdb"}}
    use_safe_formats(config)
    assert config["dataset"]["format"] == "ase_db"
    assert config["val_dataset"]["format"] == "dens_oc22_lmdb"
    names = [name for name in registry.mapping["dataset_name_mapping"] if name.endswith("lmdb")]
    others = {"ase_lmdb", "aselmdb", "dens_lmdb", "dens_oc22_lmdb"}
    assert set(names) - others == set(SAFE_FORMATS)


# ---- bad records -----------------------------------------------------------------------------

NAN = float("nan")
BAD = {
    "no pos": ({"pos": None}, "pos must be (n_atoms, 3), got none"),
    "flat pos": ({"pos": torch.zeros(24)}, "pos must be (n_atoms, 3), got shape (24,)"),
    "no atoms": ({"pos": torch.zeros(0, 3)}, "pos must be (n_atoms, 3), got shape (0, 3)"),
    "infinite pos": ({"pos": torch.full((9, 3), torch.inf)}, "pos must be finite, got NaN or"),
    "whole pos": ({"pos": torch.ones(9, 3).int()}, "pos must be floating point numbers, got"),
    "natoms": ({"natoms": 7}, "natoms must be 9, as many as pos has, got 7"),
    "no elements": ({"atomic_numbers": None}, "atomic_numbers must be (9,), got none"),
    "element 0": ({"atomic_numbers": torch.zeros(9)}, "atomic_numbers must be 1 to 118, got 0.0"),
    "NaN element": ({"atomic_numbers": torch.full((9,), NAN)}, "atomic_numbers must be 1 to 118"),
    "no energy": ({"y": None}, "energy is missing"),
    "NaN energy": ({"y": NAN}, "energy must be finite, got nan"),
    "text energy": ({"y": "low"}, "energy must be numbers, got 'low'"),
    "two energies": ({"y": torch.ones(2)}, "energy must be 1 numbers, got shape (2,)"),
    "no forces": ({"force": None}, "forces is missing"),
    "few forces": ({"force": torch.ones(8, 3)}, "forces must be (9, 3), got shape (8, 3)"),
    "one force": ({"force": 1.0}, "forces must be numbers, got 1.0"),
    "NaN force": ({"force": torch.full((9, 3), NAN)}, "forces must be finite, got NaN"),
    "short tags": ({"tags": torch.ones(8)}, "tags must be (9,), got shape (8,)"),
    "short cell": ({"cell": torch.ones(2, 3)}, "cell must be 9 numbers, got shape (2, 3)"),
}


@pytest.mark.parametrize(("fields", "message"), BAD.values(), ids=BAD)
def test_bad_records_are_named(dataset, fields, message):
    path = change(dataset, 3, **fields)
    data = CheckedRecords(load(dataset), LEVELS)
    with pytest.raises(BadRecord, match=re.escape(f"{path}, record 3 (index 3): {message}")):
        data[3]
    assert torch.equal(data[2].pos, load(dataset)[2].pos)


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (None, "there is no record under this key"),
        (b"damaged", "not a pickled record: "),
        (pickle.dumps({"pos": 1}), "not a record: expected a Data of PyG, got dict"),
    ],
)
def test_unreadable_records_are_named(dataset, pickled, message):
    path = put(dataset, {"3": pickled})
    with pytest.raises(BadRecord, match=re.escape(f"{path}, record 3 (index 3): {message}")):
        CheckedRecords(load(dataset))[3]


def test_records_are_named_by_their_number_in_the_file(dataset):
    """The number is that in the file, also in a shuffled subset."""
    path = change(dataset, 3, pos=None)
    subset = create_dataset({"src": dataset, "format": "dens_lmdb"}, "train")
    number = list(subset.indices).index(3)
    with pytest.raises(BadRecord, match=re.escape(f"{path}, record 3 (index 3): pos must be")):
        CheckedRecords(subset)[number]


def test_large_forces_are_finite(dataset):
    change(dataset, 3, force=torch.full((9, 3), 3e38))
    assert len(CheckedRecords(load(dataset), LEVELS)[3].forces) == 9


def replaced(dataset, workers: int, limit: int = 4, epochs: int = 1):
    """Return the sids of the structures that a data loader yields."""
    data = CheckedRecords(load(dataset), LEVELS, limit=limit)
    collate = lambda batch: data_list_collater(batch, otf_graph=True)  # noqa: E731
    loader = DataLoader(data, batch_size=2, num_workers=workers, collate_fn=collate)
    found = [batch.sid for _ in range(epochs) for batch in loader]
    return data, [int(sid) for batch in found for sid in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_records_are_replaced_and_counted(dataset, workers, caplog):
    """The replacement depends on the index alone; all processes together count a record once."""
    change(dataset, 2, pos=None)
    change(dataset, 3, y=NAN)
    path = put(dataset, {"7": b"damaged"})
    data, found = replaced(dataset, workers, epochs=3)
    assert found == [0, 1, 4, 4, 4, 5, 6, 0] * 3
    assert data.bad_records == 3
    if workers == 0:
        messages = [r.message for r in caplog.records if "takes its place" in r.message]
        assert len(messages) == 3
        assert messages[0] == (
            f"{path}, record 2 (index 2): pos must be (n_atoms, 3), got none: the next good record "
            "takes its place; 1 bad so far, of at most 4 (dataset.train.on_bad: skip)"
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_limit(dataset, workers):
    for number in (2, 3, 5):
        change(dataset, number, y=NAN)
    message = r"record \d \(index \d\): energy must be finite, got nan; 2 others were bad too, and"
    with pytest.raises(BadRecord, match=message):
        replaced(dataset, workers, limit=2)


def test_a_data_set_of_bad_records(dataset):
    for number in range(8):
        change(dataset, number, y=NAN)
    with pytest.raises(BadRecord, match="all 8 records are bad"):
        replaced(dataset, 0, limit=100)


GOOD = [
    ({}, None),
    ({"on_bad": "error"}, None),
    ({"on_bad": "skip"}, 0.01),
    ({"on_bad": "skip", "on_bad_limit": 0.2}, 0.2),
    ({"on_bad": "skip", "on_bad_limit": 7}, 7),
]
REFUSED = [
    ("train", {"on_bad": "ignore"}, "on_bad must be error or skip, got 'ignore'"),
    ("train", {"on_bad_limit": 3}, "on_bad_limit = 3 needs on_bad: skip"),
    *(
        ("train", {"on_bad": "skip", "on_bad_limit": limit}, f"in (0, 1), got {limit!r}")
        for limit in (0, -1, 1.0, 0.0, True, "3", NAN)
    ),
    ("val", {"on_bad": "skip"}, "training data only, metrics count every structure: got 'skip'"),
    ("test", {"on_bad_limit": 3}, "training data only, metrics count every structure: got 3"),
]


@pytest.mark.parametrize(("settings", "expected"), GOOD)
def test_settings(settings, expected):
    assert parse_on_bad({"train": settings, "val": {"on_bad": "error"}, "test": None}) == expected


@pytest.mark.parametrize(("split", "settings", "message"), REFUSED)
def test_wrong_settings_are_refused_by_name(split, settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        parse_on_bad({split: settings})
    assert f"(dataset.{split}.on_bad" in str(error.value)


@pytest.mark.parametrize(
    ("split", "fields", "bad"),
    [
        ("train", {"fixed": None}, True),
        ("val", {"fixed": None}, False),
        ("val", {"force": None}, True),
        ("test", {"force": None, "y": None}, False),
        (None, {"pos": None}, True),
    ],
)
def test_what_a_split_needs(dataset, split, fields, bad):
    change(dataset, 3, **fields)
    config = trainer_config(dataset)
    config = {**config, "dataset": config["dataset"]["train"], "val_dataset": {"src": dataset}}
    data = checked(load(dataset), split, config)
    if bad:
        with pytest.raises(BadRecord):
            data[3]
    else:
        assert data[3].natoms == 9


def test_the_limit_as_a_fraction(dataset):
    change(dataset, 3, pos=None)
    config = {"dataset": {"on_bad": "skip"}}  # 1 % of 8 records: 1
    data = checked(load(dataset), "train", config)
    assert data[3].sid == 4
    change(dataset, 5, pos=None)
    with pytest.raises(BadRecord, match="1 others were bad too"):
        data[5]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_names_bad_records_or_skips_them(tmp_path, workers):
    src, val = write_dataset(tmp_path / "train", n=16), write_dataset(tmp_path / "val", n=4)
    change(src, 3, y=float("nan"))
    put(src, {"7": b"damaged"})
    config = trainer_config(src, optim={"num_workers": workers})
    config["dataset"]["val"] = {"src": val}
    with pytest.raises(BadRecord, match=r"record (3|7) "):
        DeNSTrainer(**config).train(disable_eval_tqdm=True)
    config["dataset"]["train"].update(on_bad="skip", on_bad_limit=3)
    trainer = DeNSTrainer(**config)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.train_loader.dataset.dataset.bad_records == 2
    assert trainer.step == 8
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_a_field_may_take_the_name_that_another_gives_up():
    """From the start of a relaxation to its end: in the order of key_mapping."""
    data = Data(pos=torch.zeros(2, 3), pos_start=torch.ones(2, 3))
    renamed = rename(data, {"pos": "pos_relaxed", "pos_start": "pos"})
    assert renamed.pos.eq(1).all()
    assert renamed.pos_relaxed.eq(0).all()
    assert "pos_start" not in renamed
    data = Data(pos=torch.zeros(2, 3), pos_start=torch.ones(2, 3))
    with pytest.raises(BadRecord, match="it has both pos_start and pos"):
        rename(data, {"pos_start": "pos", "pos": "pos_relaxed"})
