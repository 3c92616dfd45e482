"""Test steps that are not finite, and stop signals."""

from __future__ import annotations

import logging
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from ase import Atoms
from helpers.stock2 import make_config, make_runner, train_steps, weights
from torchtnt.framework.callback import Callback

from dens.settings import ConfigError


def some_batches(runner, n: int) -> list:
    return [batch for batch, _ in zip(runner.train_dataloader, range(n), strict=False)]


def spoil(unit, head: str, rows, when) -> None:
    """Let a head predict NaN for ``rows`` in the steps of ``when``."""

    def hook(module, args, output):
        if unit.train_progress.num_steps_completed in when:
            value = output[head].clone()
            value[rows(args[0])] = math.nan
            return {**output, head: value}
        return None

    unit.model.module.output_heads[head].register_forward_hook(hook)


def everything(unit) -> dict[str, torch.Tensor]:
    """Copy weights, averages and the optimizer's state."""
    found = {**weights(unit), **{f"ema.{k}": v for k, v in unit.ema_model.state_dict().items()}}
    for i, state in unit.optimizer.state_dict()["state"].items():
        found |= {f"{i}.{name}": value for name, value in state.items()}
    return {name: value.clone() for name, value in found.items()}


def test_a_step_that_is_not_finite_is_named_and_skipped(new_runner, caplog):
    runner = new_runner()
    unit, batches = runner.train_eval_unit, some_batches(runner, 3)
    spoil(unit, "energy", lambda batch: 1, when={1})
    states = []
    with caplog.at_level(logging.ERROR):
        train_steps(runner, batches, lambda step: states.append(everything(unit)))
    states.append(everything(unit))
    first, second, third, last = states
    assert all(torch.equal(second[name], third[name]) for name in second)
    assert any(not torch.equal(third[name], last[name]) for name in third)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    formula = Atoms(batches[1].atomic_numbers[batches[1].batch == 1]).get_chemical_formula()
    named = f"not finite in structure 1 of the batch, {formula}: energy"
    assert f"step 1, rank 0: {named}" in caplog.text
    assert "step 1 is skipped: the loss is not finite; skipped so far: 1" in caplog.text
    assert unit.state_dict()["dens"]["skipped_steps"] == 1


def test_a_gradient_that_is_not_finite(new_runner, caplog):
    runner = new_runner(unit={"clip_grad_norm": None})
    unit, batches = runner.train_eval_unit, some_batches(runner, 1)
    parameter = next(unit.model.parameters())
    parameter.register_hook(lambda gradient: gradient * math.inf)
    before = everything(unit)
    with caplog.at_level(logging.ERROR):
        train_steps(runner, batches)
    after = everything(unit)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "step 0 is skipped: the gradient is not finite" in caplog.text


def test_too_many_of_them_end_training(new_runner):
    runner = new_runner(unit={"max_skipped_steps": 1})
    spoil(runner.train_eval_unit, "forces", lambda batch: batch.fixed == 0, when={0, 1})
    message = "2 steps in a row were not finite, the last one 1; at most 1 may be"
    with pytest.raises(FloatingPointError, match=message):
        train_steps(runner, some_batches(runner, 2))


def test_what_does_not_count_may_be_anything(new_runner):
    """The forces of corrupted atoms reach neither loss nor gradient, and infinity is no label."""
    runner = new_runner()
    unit, batches = runner.train_eval_unit, some_batches(runner, 2)
    spoil(unit, "forces", lambda batch: batch.noise_mask, when={0, 1})
    batches[0].forces[: int(batches[0].natoms[0])] = math.inf
    train_steps(runner, batches)
    assert unit.skipped_steps == 0
    assert batches[0].sigma[0] == 0
    assert batches[1].noise_mask.any()


def test_settings_out_of_range(new_runner):
    with pytest.raises(Exception, match="max_skipped_steps must be an integer >= 1, got 0") as info:
        new_runner(unit={"max_skipped_steps": 0})
    assert isinstance(info.value.__cause__, ConfigError)


class Stopping(Callback):
    """Callback that sends this process SIGTERM in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_step_start(self, state, unit) -> None:
        if unit.train_progress.num_steps_completed == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_the_present_step(tmp_path, data, caplog):
    def runner(name):
        return make_runner(make_config(tmp_path / name, {"oc20": data}, steps=5))

    before = signal.getsignal(signal.SIGTERM)
    whole = runner("whole")
    whole.run()
    stopped = runner("stopped")
    stopped.callbacks.append(Stopping(step=2))
    with pytest.raises(SystemExit) as end:
        stopped.run()
    assert end.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    folder = Path(stopped.job_config.metadata.checkpoint_dir) / "step_3"
    assert f"stopped after 3 steps, which are saved; to go on: fairchem -c {folder}" in caplog.text
    resumed = runner("stopped")
    resumed.load_state(str(folder))
    resumed.run()
    found, expected = (weights(r.train_eval_unit) for r in (resumed, whole))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
