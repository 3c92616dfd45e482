"""Test which structures are corrupted, and which labels count."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import stock2
from helpers.stock2 import DENS, train_steps

from dens.settings import ConfigError

ANOTHER = {"_target_": "torch.nn.L1Loss"}
ALWAYS = {**DENS, "prob": 1.0, "corrupt_ratio": None}


def train_on(runner, numbers=(0, 1, 2, 3), change=lambda batch: None):
    """Train on structures of the data, in a batch that is changed before."""
    loader = runner.train_dataloader
    batch = loader.collate_fn([loader.dataset[i] for i in numbers])
    change(batch)
    train_steps(runner, [batch])
    return batch


def test_data_sets_that_are_not_named_stay_clean(new_runner):
    runner = new_runner(2, dens=ALWAYS, unit={"dens_datasets": ["omat"]})
    batch = train_on(runner, numbers=(0, 13, 1, 14))
    assert batch.dataset == ["oc20", "omat", "oc20", "omat"]
    assert (batch.sigma > 0).tolist() == [False, True, False, True]


def test_structures_without_forces_or_free_atoms_stay_clean(new_runner, caplog):
    def change(batch):
        batch.forces[0] = math.inf  # one atom of the first structure
        batch.fixed[batch.batch == 1] = 1
        batch.forces[batch.batch == 2] = math.nan

    batch = train_on(new_runner(dens=ALWAYS), change=change)
    assert (batch.sigma > 0).tolist() == [False, False, False, True]
    assert "label forces is NaN and does not count in structure 2 of the batch, " in caplog.text


def test_forces_count_outside_c_and_noise_on_it(new_runner):
    batch = train_on(new_runner(dens={**DENS, "prob": 1.0}))
    mask = batch.noise_mask
    assert 0 < mask.sum() < len(mask)
    assert torch.equal(batch.forces.isfinite().all(dim=1), ~mask & (batch.fixed == 0))
    assert torch.equal(batch.dens_noise_forces.isfinite().all(dim=1), mask)
    assert batch.energy.isfinite().all()


@pytest.mark.parametrize("limit", ["max_force_norm", "max_stress_norm"])
def test_limits_of_forces_and_stress(new_runner, limit):
    runner = new_runner(dens={**ALWAYS, limit: 1e-6}, gradient=True)
    assert not train_on(runner).noise_mask.any()


def test_noise_is_that_of_the_step_and_the_structure(new_runner):
    """It is the same in another batch, and another in the next step."""
    runner = new_runner(dens=ALWAYS)

    def noise(*numbers):
        runner.train_eval_unit.train_progress._num_steps_completed = 0
        batch = train_on(runner, numbers)
        return batch.noise.split(batch.natoms.tolist())

    one, other = noise(3, 5, 4), noise(5, 3)
    assert torch.equal(one[0], other[1])
    assert torch.equal(one[1], other[0])
    assert not torch.equal(train_on(runner, [3]).noise, one[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dens": {**DENS, "sigmaa": 1}}, "unknown key sigmaa = 1 .runner.train_eval_unit.dens"),
        ({"unit": {"dens_datasets": ["oc22"]}}, "dens_datasets must be one of oc20, got 'oc22'"),
        ({"dens": {**DENS, "exclude_md": True}}, "list the data sets to corrupt under dens_data"),
        ({"dens": {**DENS, "max_stress_norm": 1.0}}, "needs a task with property: stress"),
        ({"unit": {"train_strategy": "fsdp"}}, "train_strategy must be ddp with DeNS, got fsdp"),
        ({"unit": {"primary_metric": "force_mae"}}, "must be one of .*did you mean forces_mae"),
        ({"unit": {"watch": {"figures": 1}}}, "unknown key figures = 1 .*figures_every"),
    ],
)
def test_mistakes_in_the_config(new_runner, settings, message):
    with pytest.raises(Exception, match=message) as info:
        new_runner(**settings)
    assert isinstance(info.value.__cause__, ConfigError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: {**task, "property": "x"}, r"with property: forces.*got energy .x., forces"),
        (lambda task: {**task, "loss_fn": ANOTHER}, r"loss_fn must be a .*DDPMTLoss.* got L1Loss"),
    ],
)
def test_tasks_that_it_does_not_fit(new_runner, monkeypatch, change, message):
    stock = stock2.task
    monkeypatch.setattr(stock2, "task", lambda *args: change(stock(*args)))
    with pytest.raises(Exception, match=message):
        new_runner()
