"""Test checkpoints: exact resume, and files for inference that are the stock model's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fairchem.core.units.mlip_unit.utils import load_inference_model
from helpers.stock2 import DENS, MOE, make_config, make_runner

from dens.fairchem2.attach import attach_dens

CALCULATOR = """
import sys
from ase.build import fcc111
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit
from fairchem.core.units.mlip_unit.api.inference import InferenceSettings

energies = []
for merge in (False, True):
    settings = InferenceSettings(
        merge_mole=merge, compile=False, tf32=False, activation_checkpointing=False
    )
    unit = load_predict_unit(sys.argv[1], device="cpu", inference_settings=settings)
    slab = fcc111("Cu", (2, 2, 3), vacuum=7.0)
    slab.pbc = True
    slab.calc = FAIRChemCalculator(unit, task_name="oc20")
    energies.append(slab.get_potential_energy())
assert abs(energies[0] - energies[1]) < 1e-4, energies
assert not any(name.split(".")[0] == "dens" for name in sys.modules)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """Train a small UMA (MoE) to its end, with checkpoints on the way."""
    folder = tmp_path_factory.mktemp("trained")
    runner = make_runner(make_config(folder, {"oc20": data}, backbone=MOE))
    runner.run()
    return runner


def checkpoints(runner) -> Path:
    return Path(runner.job_config.metadata.checkpoint_dir)


def states(unit) -> dict[str, torch.Tensor]:
    averaged = {f"ema.{k}": v for k, v in unit.ema_model.state_dict().items()}
    moments = {
        f"{i}.{k}": v
        for i, state in unit.optimizer.state_dict()["state"].items()
        for k, v in state.items()
    }
    return {**unit.model.state_dict(), **averaged, **moments}


def test_a_resumed_run_is_the_uninterrupted_one(trained, tmp_path, data):
    runner = make_runner(make_config(tmp_path, {"oc20": data}, backbone=MOE))
    runner.load_state(str(checkpoints(trained) / "step_2"))
    runner.run()
    assert runner.train_eval_unit.best.value == trained.train_eval_unit.best.value
    found, expected = states(runner.train_eval_unit), states(trained.train_eval_unit)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", ["final/inference_ckpt.pt", "best_inference_ckpt.pt"])
def test_files_for_inference_are_stock(trained, name, tmp_path, data):
    """Their entries are those of a stock run, and the stock model loads them strictly."""
    path = checkpoints(trained) / name
    stock = make_runner(make_config(tmp_path, {"oc20": data}, backbone=MOE, dens=None))
    for use_ema in (False, True):
        _, found = load_inference_model(str(path), use_ema=use_ema, strict=True)
        assert [t["name"] for t in found.tasks_config] == ["energy", "forces"]
    found = torch.load(path, weights_only=False)
    assert type(found.model_config) is dict  # by which the host tells a UMA
    unit = stock.train_eval_unit
    bare = {k.removeprefix("module."): v for k, v in unit.model.state_dict().items()}
    assert found.model_state_dict.keys() == bare.keys()
    assert set(found.model_config["heads"]) == {"energy", "forces"}


def test_the_calculator_needs_no_dens(trained):
    path = checkpoints(trained) / "final" / "inference_ckpt.pt"
    command = [sys.executable, "-c", CALCULATOR, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


def test_evaluation_is_that_of_the_stock_model(trained):
    path = str(checkpoints(trained) / "final" / "inference_ckpt.pt")
    found = []
    for attach in (False, True):
        model, _ = load_inference_model(path)
        if attach:
            attach_dens(model)
        batch = next(iter(trained.eval_dataloader))
        torch.manual_seed(5)  # of the roll of edge frames
        found.append(model.eval()(batch))
    stock, ours = found
    for head in stock:
        for name, value in stock[head].items():
            assert torch.equal(ours[head][name], value), name


@pytest.mark.parametrize("fresh", [False, True])
def test_fine_tuning(trained, tmp_path, data, fresh):
    """With the pretrained heads the model first predicts what the checkpoint does."""
    path = str(checkpoints(trained) / "final" / "inference_ckpt.pt")
    config = make_config(tmp_path, {"oc20": data}, dens=DENS)
    section = config["runner"]["train_eval_unit"]
    section["model"] = {
        "_target_": "fairchem.core.units.mlip_unit.mlip_unit.initialize_finetuning_model",
        "checkpoint_location": path,
        **({"heads": section["model"]["heads"]} if fresh else {}),
    }
    runner = make_runner(config)
    pretrained, _ = load_inference_model(path)
    found = []
    for model in (pretrained, runner.train_eval_unit.eval_unit.model):
        torch.manual_seed(5)
        found.append(model.eval()(next(iter(runner.eval_dataloader))))
    before, now = ({k: v for out in each.values() for k, v in out.items()} for each in found)
    for name in ("energy", "forces"):
        assert torch.equal(now[name], before[name]) != fresh
    runner.run()
    final = str(checkpoints(runner) / "final" / "inference_ckpt.pt")
    load_inference_model(final, strict=True)
