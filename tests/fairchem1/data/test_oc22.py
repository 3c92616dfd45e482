"""OC22: linear references are subtracted without rounding errors; DeNS trains on the result."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets import data_list_collater
from helpers.structures import make_structure
from helpers.trainers import DENS, trainer_config

from dens.data.store.lmdb import LmdbWriter
from dens.fairchem1 import DeNSTrainer
from dens.settings import ConfigError

KEYS = {"y": "energy", "force": "forces"}
COEFF = {8: -6.66451126, 29: -2.72318125, 43: 156.37240938, 35: -23343.97, 53: -0.0046, 57: 0.0}


@pytest.fixture
def lin_ref(tmp_path) -> str:
    coeff = np.zeros(100)
    coeff[list(COEFF)] = list(COEFF.values())
    np.savez(tmp_path / "linref.npz", coeff=coeff)
    return str(tmp_path / "linref.npz")


def entries(n: int = 6, **changes) -> list:
    """Make Cu slabs with O in the form of OC22, with total energies around -900 eV."""
    rng = np.random.default_rng(0)
    made = [make_structure(rng, sid=i, nads=1, oc22=1) for i in range(n)]
    for data in made:
        data.y, data.force = -900.0 + data.energy, data.forces
        del data.energy, data.forces
        for name, value in changes.items():
            data[name] = value
    return made


def write(path: Path, data_list: list) -> str:
    with LmdbWriter(path) as writer:
        for data in data_list:
            writer.write(data)
    return str(path)


def load(src: str, name: str = "dens_oc22_lmdb", **config):
    cls = registry.get_dataset_class(name)
    return cls({"src": src, "key_mapping": KEYS, **config})


def referenced(data, coeff) -> float:
    """Compute E - sum c(Z) without rounding errors."""
    return math.fsum([data.y, *(-float(coeff[z]) for z in data.atomic_numbers.long().tolist())])


@pytest.mark.parametrize("name", ["dens_oc22_lmdb", "dens.OC22LmdbDataset"])
def test_energies_minus_references(tmp_path, lin_ref, name):
    source = entries()
    dataset = load(write(tmp_path / "train", source), name, lin_ref=lin_ref)
    assert len(dataset) == 6
    expected = [referenced(data, COEFF) for data in source]
    assert [data.energy for data in dataset] == pytest.approx(expected, abs=1e-11)
    batch = data_list_collater(list(dataset), otf_graph=True)
    assert batch.energy.tolist() == np.float32(expected).tolist()
    assert torch.equal(batch.forces[:9], source[0].force)


def test_why_fairchem_is_not_enough(tmp_path, lin_ref):
    """If this fails, fairchem applies lin_ref itself, and ours would subtract it twice."""
    source = entries()
    dataset = load(write(tmp_path / "train", source), "oc22_lmdb", lin_ref=lin_ref)
    assert [data.energy for data in dataset] == [data.y for data in source]


def test_without_lin_ref_nothing_changes(tmp_path):
    source = entries()
    dataset = load(write(tmp_path / "train", source))
    assert [data.energy for data in dataset] == [data.y for data in source]


def test_energies_of_oc20_become_totals_first(tmp_path, lin_ref):
    source = entries(2)
    for data in source:
        data.y += 900.0
        del data.oc22, data.nads
    with open(tmp_path / "oc20_ref.pkl", "wb") as file:
        pickle.dump({"random0": -900.125, "random7": 0.0}, file)
    both = {"oc20_ref": str(tmp_path / "oc20_ref.pkl"), "train_on_oc20_total_energies": True}
    dataset = load(write(tmp_path / "train", source), lin_ref=lin_ref, **both)
    assert dataset[0].energy == pytest.approx(referenced(source[0], COEFF) - 900.125, abs=1e-11)
    assert (dataset[0].oc22, dataset[0].nads) == (0, 1)
    with pytest.raises(ConfigError, match=r"entry 1 is from OC20, but 'random1' has no reference"):
        dataset[1]


@pytest.mark.parametrize(("number", "symbol"), [(43, "Tc"), (35, "Br"), (53, "I"), (57, "La")])
def test_elements_without_reference(tmp_path, lin_ref, number, symbol):
    source = entries(1)
    source[0].atomic_numbers[-1] = number
    dataset = load(write(tmp_path / "train", source), lin_ref=lin_ref)
    message = rf"train: entry 0: no reference energy for {symbol} in .*linref.npz \(dataset.train."
    with pytest.raises(ConfigError, match=message):
        dataset[0]


def test_bad_reference_files(tmp_path):
    src = write(tmp_path / "train", entries(1))
    with pytest.raises(
        ConfigError, match=r"none.npz: expected an .npz .*: .*No such .*\(dataset.train.lin_ref"
    ):
        load(src, lin_ref="none.npz")
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    with pytest.raises(ConfigError, match=r"other.npz: expected an .npz with the key coeff"):
        load(src, lin_ref=str(tmp_path / "other.npz"))
    np.savez(tmp_path / "square.npz", coeff=np.zeros((3, 3)))
    with pytest.raises(ConfigError, match=r"got \(3, 3\)"):
        load(src, lin_ref=str(tmp_path / "square.npz"))


def oc22_config(src: str, lin_ref: str) -> dict:
    config = trainer_config(src, dens={**DENS, "sigma": 0.15, "denoising_coefficient": 25.0})
    config["dataset"]["train"].update(
        format="dens.OC22LmdbDataset",
        lin_ref=lin_ref,
        transforms={
            "normalizer": {
                "energy": {"mean": 0.0, "stdev": 25.119809935106424},
                "forces": {"mean": 0.0, "stdev": 0.14759646356105804},
            }
        },
    )
    return config


def test_training(tmp_path, lin_ref):
    """References are subtracted in the validation split too, which inherits the settings."""
    trainer = DeNSTrainer(**oc22_config(write(tmp_path / "train", entries()), lin_ref))
    expected = sorted(referenced(data, COEFF) for data in entries())
    for dataset in (trainer.train_dataset, trainer.val_dataset):
        assert sorted(data.energy for data in dataset) == pytest.approx(expected, abs=1e-11)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.best_val_metric < 1e9


def test_real_frames(tmp_path, real_data):
    with open(real_data / "oc22" / "oc22_s2ef_16.pkl", "rb") as file:
        source = pickle.load(file)
    lin_ref = str(real_data / "linref" / "oc22_linfit_coeffs.npz")
    src = write(tmp_path / "train", source)
    dataset = load(src, lin_ref=lin_ref)
    coeff = np.load(lin_ref)["coeff"]
    batch = data_list_collater(list(dataset), otf_graph=True)
    expected = np.float32([referenced(data, coeff) for data in source])
    assert np.abs(batch.energy.numpy() - expected).max() <= np.spacing(np.abs(expected).max())
    assert abs(min(data.y for data in source)) > 900
    assert torch.equal(batch.forces, torch.cat([data.force for data in source]))
    trainer = DeNSTrainer(**oc22_config(src, lin_ref))
    trainer.train(disable_eval_tqdm=True)
    assert trainer.best_val_metric < 1e9


def test_the_trainer_applies_lin_ref_in_fairchems_format_too(tmp_path, lin_ref, caplog):
    """A config for fairchem's oc22_lmdb trains on referenced energies, with a warning."""
    source = entries()
    config = oc22_config(write(tmp_path / "train", source), lin_ref)
    config["dataset"]["train"]["format"] = "oc22_lmdb"
    trainer = DeNSTrainer(**config)
    expected = [referenced(data, COEFF) for data in source]
    for dataset in (trainer.train_dataset, trainer.val_dataset):
        assert sorted(d.energy for d in dataset) == pytest.approx(sorted(expected), abs=1e-11)
    assert sum("ignores lin_ref" in record.message for record in caplog.records) == 1
