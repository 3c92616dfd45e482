"""Test the benchmarks that train before they relax: ablations, and adsorbates left out."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import json

import pytest
import torch
from helpers.denoisers import ExactDenoiser
from helpers.labelled import write_traj
from helpers.trainers import morered_config, write_dataset

from benchmarks import relax_ablations, relax_oc20, training
from benchmarks.relaxation.molecules import read_set
from dens import cli
from dens.fairchem1 import MoreRedTrainer
from dens.fairchem1.launch import parse_args, read_config
from dens.relax.atoms.conversion import Limits, to_structures

pytestmark = pytest.mark.slow


@pytest.fixture
def dataset(tmp_path) -> str:
    return write_dataset(tmp_path / "dataset")


def run_here(arguments, log):
    """Run ``dens`` in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, arguments)])
    assert not ended.value.code


def test_what_is_trained_is_kept_with_its_settings(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(training, "run_dens", lambda arguments, log: commands.append(arguments))
    for _ in range(2):
        checkpoint = training.train("a.yml", "arm", tmp_path, ["--seed", "1"])
        assert checkpoint == tmp_path / "checkpoints/arm/checkpoint.pt"
    assert len(commands) == 1
    with pytest.raises(ValueError, match=r"arm\.json is of other settings"):
        training.train("a.yml", "arm", tmp_path, ["--seed", "2"])


def test_a_failed_process_is_an_error_of_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"see \S*/log: error: .*none_such"):
        training.run_dens(["recipes", "copy", "none_such", tmp_path / "copied"], tmp_path / "log")


def test_ablations_are_valid_and_change_the_config(tmp_path, monkeypatch):
    for split, size in {"train": 2 * relax_ablations.BATCH, "val": 3}.items():
        write_dataset(tmp_path / split, size)
    args = argparse.Namespace(data=tmp_path, runs=tmp_path, steps=2, seeds=[0])
    monkeypatch.setattr(relax_ablations, "train", lambda config, run, runs, settings: settings)

    def config_of(arm):
        (settings,) = relax_ablations.train_arm(arm, args)
        command = ["--config", relax_ablations.CONFIG, "--timestamp-id", "run"]
        return read_config(*parse_args([*command, *settings]))

    shipped = config_of("as shipped")
    assert shipped["optim"]["batch_size"] == relax_ablations.BATCH
    for arm in set(relax_ablations.ARMS) - {"as shipped"}:
        changed = [key for key, value in config_of(arm).items() if value != shipped[key]]
        assert len(set(changed) - {"cmd"}) == 1, arm


def test_the_error_of_the_noise_does_not_train_a_detached_time(dataset):
    head = {"module": "benchmarks.relax_ablations.DetachedHead"}
    for heads, trained in ((None, True), ({"morered": head}, False)):
        trainer = MoreRedTrainer(**morered_config(dataset, heads=heads))
        trainer.model.train()
        out = trainer._forward(next(iter(trainer.train_loader)))
        out["noise"].square().sum().backward()
        weight = trainer._unwrapped_model.output_heads["morered"].time[0].weight
        assert (weight.grad is not None and bool(weight.grad.any())) == trained


def test_scaled_structures_shrink_with_their_noise(dataset):
    batches = []
    for trainer_class in (MoreRedTrainer, relax_ablations.ScaledTrainer):
        trainer = trainer_class(**morered_config(dataset))
        batches.append(next(iter(trainer.train_loader)))
        trainer._forward(batches[-1])
    plain, scaled = batches
    alpha_bar = 1 / (1 + plain.sigma.square())
    expected = alpha_bar.sqrt()[plain.batch][:, None] * plain.pos
    assert torch.allclose(scaled.pos, expected, atol=1e-6)
    assert torch.equal(scaled.noise, plain.noise)


def test_relaxations_are_left_out_in_turn_and_scored(tmp_path, monkeypatch, capsys):
    data, runs = tmp_path / "relaxations", tmp_path / "runs"
    for name, metal, oxygens in (("a", "Cu", 1), ("b", "Cu", 2), ("c", "Cu", 3), ("d", "Au", 1)):
        write_traj(data / f"{name}.traj", 4, seed=ord(name), metal=metal, oxygens=oxygens)

    def load(*_, **__):
        sets = [read_set(path, 1).atoms for path in runs.glob("data/*/left_out")]
        known = ExactDenoiser([s for atoms in sets for s in to_structures(atoms, Limits())])
        known.elements = (8, 29)
        return known

    learnt = []
    monkeypatch.setattr(relax_oc20, "load_denoiser", load)
    monkeypatch.setattr(relax_oc20, "run_dens", run_here)
    monkeypatch.setattr(relax_oc20, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(relax_oc20, "train", lambda *words: learnt.append(words))
    command = ["--data", str(data), "--runs", str(runs), "--folds", "2"]
    relax_oc20.main([*command, "--out", str(tmp_path / "result.json")])
    assert len(learnt) == 2
    table = capsys.readouterr().out
    systems = json.loads((tmp_path / "result.json").read_text())["systems"]
    assert [s["name"] for s in systems] == ["a", "b", "c", "d"]
    assert [s["new_elements"] for s in systems] == [[], [], [], ["Au"]]
    for system in systems:
        before, after = system[relax_oc20.START], system[relax_oc20.RELAXED]
        assert after["distance"] < 0.02 < before["distance"]
        assert after["adwt"] > before["adwt"]
    assert "| no new elements: 3 | MoreRed |" in table
    relax_oc20.main(["--table", str(tmp_path / "result.json")])
    assert capsys.readouterr().out in table
    (data / "b.traj").rename(data / "e.traj")
    for folds, message in (("2", "was made of other trajectories"), ("5", "must be from 2 to 4")):
        with pytest.raises(SystemExit):
            relax_oc20.main([*command[:-1], folds])
        assert message in capsys.readouterr().err
