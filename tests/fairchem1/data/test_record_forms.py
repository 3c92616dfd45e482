"""Records of other programs: the same facts in other types train, other facts are refused."""

from __future__ import annotations

import copy
import logging
import pickle
import re

import numpy as np
import pytest
import torch
from helpers.structures import make_structure
from helpers.trainers import trainer_config
from torch_geometric.data import Data

from dens.data.canonical import canonical, make_alike
from dens.data.checked import CheckedRecords, checked, needed_fields
from dens.data.store.lmdb import LmdbWriter
from dens.data.survey.check import check
from dens.fairchem1 import DeNSTrainer
from dens.fairchem1.data.datasets import open_dataset
from dens.safe.pickles import BadRecord

LEVELS = {"energy": "system", "forces": "atom", "fixed": "atom", "cell": "system"}


def load(src):
    return open_dataset(src, {"key_mapping": {"y": "energy", "force": "forces"}})


def lone_atom(data: Data) -> None:
    data.pos, data.atomic_numbers, data.natoms = torch.ones(1, 3), torch.tensor([6]), 1
    data.tags, data.fixed = torch.zeros(1).long(), torch.zeros(1)
    data.force = torch.zeros(1, 3)


def set_(**fields):
    """Make a change of a record: new values, or functions of the old ones; None deletes."""

    def change(data: Data) -> None:
        for name, value in fields.items():
            if value is None:
                del data[name]
            else:
                data[name] = value(data[name]) if callable(value) else value

    return change


def double(value):
    return value.double()


def as_numpy(value):
    return value.numpy()


ARRAYS = ("pos", "cell", "force", "fixed", "tags", "atomic_numbers")
# one change for each record of one data set, which trains
GOOD = [
    set_(),
    set_(cell=lambda cell: cell[0]),
    set_(cell=lambda cell: cell.flatten().double().numpy()),
    set_(pos=double, cell=double, force=double, fixed=double),
    set_(**dict.fromkeys(ARRAYS, as_numpy)),
    set_(**{name: lambda value: value.tolist() for name in ("pos", "force", "fixed", "tags")}),
    set_(natoms=None, fid=None),
    set_(natoms=lambda n: torch.tensor([n]), y=lambda y: torch.tensor([[y]])),
    set_(natoms=float, y=np.float64, sid="a/run"),
    set_(y=lambda y: torch.tensor([y]).double(), sid=torch.tensor([7])),
    set_(y=2, force=lambda force: force.half()),
    set_(fixed=lambda fixed: fixed.bool()[:, None], pbc=True),
    set_(atomic_numbers=lambda numbers: numbers.to(torch.uint8), pbc=[True, True, False]),
    set_(atomic_numbers=lambda numbers: numbers.double()[:, None], pbc=np.ones(3, int)),
    set_(charge=1, stress=torch.zeros(1, 9)),
    set_(stress=torch.zeros(3, 3), info={"a": 1}, tags=None),
    set_(edge_index=torch.zeros(5, 2).long()),
    lambda data: setattr(data, "energy", data.y),
    set_(cell=torch.zeros(1, 3, 3)),
    lone_atom,
]


def write(path, changes) -> str:
    rng = np.random.default_rng(0)
    with LmdbWriter(path) as writer:
        for i, change in enumerate(changes):
            data = make_structure(rng, sid=i)
            data.y, data.force = data.energy, data.forces
            del data.energy, data.forces
            change(data)
            writer.write_bytes(pickle.dumps(data), natoms=len(data.pos))
    return str(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_of_all_forms_trains(tmp_path, workers, caplog):
    src = write(tmp_path / "train", GOOD)
    config = trainer_config(src, optim={"num_workers": workers, "max_epochs": 2})
    report = check(open_dataset(src, config["dataset"]["train"]), src, metadata=None)
    assert report.ok, report.text()
    assert {place.split()[0] for place in report.findings["fields"]} == {
        *("charge", "edge_index", "fid", "info", "stress", "tags")
    }
    trainer = DeNSTrainer(**config)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 10
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    if workers == 0:
        said = [r.message for r in caplog.records if "records differ in their fields" in r.message]
        assert len(said) == 2  # once in training, once in validation


def test_values_are_those_of_the_plain_form(tmp_path):
    records = CheckedRecords(load(write(tmp_path / "a", GOOD)), LEVELS)
    plain = CheckedRecords(load(write(tmp_path / "b", [set_()] * len(GOOD))), LEVELS)
    for i in range(10):  # those after change values
        for name in ("pos", "cell", "forces", "atomic_numbers", "fixed", "natoms", "energy"):
            found, expected = records[i][name], plain[i][name]
            torch.testing.assert_close(
                torch.as_tensor(found), torch.as_tensor(expected), check_dtype=False, atol=0, rtol=0
            )
        assert records[i].pos.dtype == records[i].forces.dtype == torch.float32
        assert isinstance(records[i].energy, float)


BAD = {
    "both labels": (set_(energy=5.0), "it has both y and energy, with different values, and key_m"),
    "both forces": (set_(forces=torch.ones(9, 3)), "it has both force and forces, with different"),
    "no fixed": (set_(fixed=None), "fixed is missing"),
    "no cell": (set_(cell=None), "cell is missing"),
    "flat cell": (
        set_(cell=lambda c: c * torch.tensor([[1.0], [1], [0]])),
        "cell has no volume in",
    ),
    "cell of lengths": (set_(cell=torch.ones(6)), "cell must be 9 numbers, got shape (6,)"),
    "two pbc": (set_(pbc=torch.ones(2).bool()), "pbc must be 3 numbers, got shape (2,)"),
    "half elements": (set_(atomic_numbers=lambda z: z + 0.5), "atomic_numbers must be whole num"),
    "bool energy": (set_(y=True), "energy must be numbers, got True"),
    "transposed": (set_(force=lambda f: f.T), "forces must be (9, 3), got shape (3, 9)"),
    "NaN where fixed": (
        set_(force=lambda f: torch.where(torch.arange(9)[:, None] > 3, f, torch.nan)),
        "forces must be finite, got NaN",
    ),
    "two natoms": (set_(natoms=torch.tensor([9, 9])), "natoms must be 9, as many as pos has, got"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_other_facts_are_refused_by_training_and_check(tmp_path, change, message):
    src = write(tmp_path / "train", [set_(), change, set_()])
    config = trainer_config(src)
    assert needed_fields(config, "train") == LEVELS
    data = checked(load(src), "train", {**config, "dataset": config["dataset"]["train"]})
    with pytest.raises(BadRecord, match=re.escape(f"record 1 (index 1): {message}")):
        data[1]
    settings = config["dataset"]["train"]
    assert not check(open_dataset(src, settings), src, metadata=None, levels=LEVELS).ok


@pytest.mark.parametrize("case", ["NaN where fixed", "transposed"])
def test_normalizers_are_fitted_to_sound_records(tmp_path, case):
    """A bad record is named, or left out, and never in the fitted numbers."""
    change, message = BAD[case]
    src = write(tmp_path / "train", [set_(), change, set_()])
    config = trainer_config(src)
    fit = {"targets": {"energy": {"mean": 0.0}, "forces": {"mean": 0.0}}, "batch_size": 2}
    config["dataset"]["train"]["transforms"]["normalizer"] = {"fit": fit}
    with pytest.raises(BadRecord, match=re.escape(f"record 1 (index 1): {message}")):
        DeNSTrainer(**copy.deepcopy(config))
    config["dataset"]["train"]["on_bad"] = "skip"
    normalizers = DeNSTrainer(**config).normalizers
    assert all(normalizer.rmsd.isfinite() for normalizer in normalizers.values())


def test_labels_under_both_names_are_read_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = load(write(tmp_path / "train", [GOOD[-3]] * 2))
        assert "y" not in data[0]
    found = check(open_dataset(tmp_path / "train"), tmp_path, metadata=None).findings
    assert len(found["twice"]) == 2


def test_where_nothing_needs_fixed(tmp_path, caplog):
    src = write(tmp_path / "train", [set_(fixed=None)] * 8)
    config = trainer_config(src)
    config["outputs"]["forces"].update(train_on_free_atoms=False)
    assert "fixed" not in needed_fields(config, "train")
    trainer = DeNSTrainer(**config)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 4
    assert sum("all atoms count as free" in r.message for r in caplog.records) == 2


@pytest.mark.parametrize("pbc", [None, True, False])
def test_a_cell_is_needed_where_a_model_reads_it(pbc):
    model = {} if pbc is None else {"use_pbc": pbc}
    needed = needed_fields({"model": {"backbone": {"max_radius": 4.0, **model}}}, "test")
    assert needed == ({} if pbc is False else {"cell": "system"})


def test_open_structures_get_a_cell_and_a_pbc():
    data = canonical(Data(pos=torch.ones(2, 3), pbc=torch.zeros(3).bool()))
    assert (data.natoms, data.cell.shape, data.pbc.shape) == (2, (1, 3, 3), (1, 3))
    zero = canonical(Data(pos=torch.ones(2, 3), cell=torch.zeros(3, 3)))
    periodic = canonical(Data(pos=torch.ones(2, 3), cell=torch.eye(3)))
    assert "pbc" not in periodic
    assert make_alike([zero, periodic]) == {}
    assert (zero.pbc.any().item(), periodic.pbc.all().item()) == (False, True)
