"""Test exported models in stock fairchem, without dens."""

import copy
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.io import write
from fairchem.core.datasets import data_list_collater
from fairchem.core.preprocessing import AtomsToGraphs
from helpers.checkpoint_files import STRESS, save, trained
from helpers.stock_fairchem import StockFairchem, same_frames
from helpers.structures import make_structure
from helpers.trainers import STOCK_MODEL

from dens.fairchem1.checkpoints.calculator import load_calculator
from dens.fairchem1.checkpoints.export import export_checkpoint

TASK = {
    "relaxation_steps": 5,
    "relaxation_fmax": 0.01,
    "relax_opt": {"maxstep": 0.05, "memory": 0},  # LBFGS with a memory is another in dens
    "write_pos": True,
}
CALCULATE = """
import sys
import numpy as np
from ase.io import read
from fairchem.core import OCPCalculator
calculator = OCPCalculator(checkpoint_path=sys.argv[1], cpu=True, seed=0)
results = {}
for i, atoms in enumerate(read(sys.argv[2], ":")):
    calculator.calculate(atoms, ["energy"], [])
    results.update({f"{name}{i}": value for name, value in calculator.results.items()})
np.savez(sys.argv[3], **results)
"""


@pytest.fixture
def stock(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "rand_like", same_frames)
    return StockFairchem(tmp_path / "elsewhere")


@pytest.fixture(params=[False, True], ids=["energy and forces", "with stress"])
def models(request, tmp_path):
    """Train a DeNS model and export it; return the trainer and the exported file."""
    outputs = {"prediction_dtype": "float32"}
    trainer = trained(tmp_path, request.param, ("test", "relax"), task={**TASK, **outputs})
    export_checkpoint(save(trainer), tmp_path / "eqv2.pt")
    return trainer, tmp_path / "eqv2.pt"


def some_atoms(n):
    rng = np.random.default_rng(3)
    for i in range(n):
        data = make_structure(rng, [(2, 2, 2), (1, 2, 3)][i % 2])
        cell = data.cell[0].numpy()
        yield Atoms(data.atomic_numbers, data.pos.numpy(), cell=cell, pbc=True, tags=data.tags)


def predict(trainer, structures):
    convert = AtomsToGraphs(r_energy=False, r_forces=False, r_distances=False, r_pbc=True)
    for atoms in structures:
        batch = data_list_collater([convert.convert(atoms)], otf_graph=True)
        yield trainer.predict(batch, per_image=False, disable_tqdm=True)


def test_there_is_no_dens(stock):
    with pytest.raises(AssertionError, match="No module named 'dens'"):
        stock.python("-c", "import fairchem.core, dens")


def test_calculator(tmp_path, stock, models):
    trainer, exported = models
    with zipfile.ZipFile(exported) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        assert b"dens" not in archive.read(pickled).lower()
    structures = list(some_atoms(20))
    write(tmp_path / "structures.traj", structures)
    stock.python("-c", CALCULATE, exported, tmp_path / "structures.traj", tmp_path / "results.npz")
    results = np.load(tmp_path / "results.npz")
    outputs = list(trainer.config["outputs"])
    assert len(results) == 20 * len(outputs)
    for i, expected in enumerate(predict(trainer, structures)):
        assert list(expected) == outputs
        for name, value in expected.items():
            found = results[f"{name}{i}"].reshape(value.shape)
            np.testing.assert_allclose(found, value.numpy(), rtol=1e-6, atol=1e-6)


def test_command_line(tmp_path, stock, models):
    """``fairchem --mode validate``, ``predict`` and ``run-relaxations`` give our results."""
    trainer, exported = models
    config = tmp_path / "plain.yml"
    config.write_text(yaml.safe_dump(plain_config(trainer)))

    log = stock.fairchem("validate", config, exported)
    metrics = trainer.validate(disable_tqdm=True)
    for name in ("energy_mae", "forces_mae"):
        assert f"{name}: {metrics[name]['metric']:.4f}" in log

    stock.fairchem("predict", config, exported)
    trainer.predict(trainer.test_loader, results_file="predictions", disable_tqdm=True)
    found, expected = both_results(trainer, stock, "*predictions.npz")
    assert len(found["energy"]) == 20
    assert set(trainer.config["outputs"]) <= set(found)
    for name in expected:
        compare(found[name], expected[name])

    stock.fairchem("run-relaxations", config, exported)
    trainer.run_relaxations()
    found, expected = both_results(trainer, stock, "relaxed_positions.npz")
    assert len(found["ids"]) == 20
    for name in expected:
        compare(found[name], expected[name])


def plain_config(trainer) -> dict:
    """Write the config that runs the exported model of ``trainer`` in stock fairchem."""
    config = copy.deepcopy(trainer.config)
    heads = {**STOCK_MODEL["heads"], **(STRESS if "stress" in config["outputs"] else {})}
    train = {**config["dataset"], "format": "lmdb"}
    others = {name: {"src": train["src"]} for name in ("val", "test", "relax")}
    return {
        "trainer": "equiformerv2_forces",
        "model": {**STOCK_MODEL, "heads": heads},
        "dataset": {"train": train, **others},
        "outputs": config["outputs"],
        "optim": {key: value for key, value in config["optim"].items() if key != "dens"},
        "loss_functions": config["loss_functions"],
        "evaluation_metrics": config["evaluation_metrics"],
        "task": config["task"],
        "logger": "tensorboard",
    }


def both_results(trainer, stock, pattern: str):
    """Load the results that the stock command line and ``trainer`` wrote."""
    folders = stock.folder / "results", trainer.config["cmd"]["results_dir"]
    for folder in folders:
        (path,) = Path(folder).rglob(pattern)
        yield np.load(path)


def compare(found, expected) -> None:
    if found.dtype.kind in "US":
        assert (found == expected).all()
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_calculator_of_dens(tmp_path, stock, models):
    """The calculator has the weights of validation, and neither noise head nor encoding."""
    trainer, _ = models
    calculator = load_calculator(save(trainer), cpu=True)
    model = calculator.trainer._unwrapped_model
    assert set(model.output_heads) == set(trainer.config["outputs"])
    assert model.backbone.force_encoding is None
    structures = list(some_atoms(2))
    for atoms, expected in zip(structures, predict(trainer, structures), strict=True):
        calculator.calculate(atoms, ["energy"], [])
        assert calculator.results["energy"] == expected["energy"].item()
        np.testing.assert_array_equal(calculator.results["forces"], expected["forces"].numpy())
