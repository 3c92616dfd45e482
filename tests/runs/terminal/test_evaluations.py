"""Evaluations of a run: a line for each, and the table at its end."""

from __future__ import annotations

import logging

import pytest

from dens.runs.log import RunLog
from dens.runs.terminal.progress import Plan

VAL = {"forces_mae": 0.2, "energy_mae": 0.5, "loss": 2.0, "epoch": 1.0, "forces_cosine": 0.1}
NOISE = {
    **{f"denoising_pos_mae/sigma={sigma}": 0.01 for sigma in ("0.05", "0.10", "0.20")},
    "denoising_pos_mae/sigma=0.10/no_forces": 0.02,
}


class NoLogger:
    def log(self, update_dict, step, split="") -> None:
        pass


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "dens.terminal")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "dens.terminal"]


def make_log(folder, first_step: int = 1) -> RunLog:
    log = RunLog(NoLogger(), folder, {}, first_step=first_step)
    log.plan(Plan(30, 10), "forces_mae")
    return log


def train(log: RunLog, step: int) -> None:
    log.log({"loss": 1.0, "step": step, "epoch": step / 10}, step, "train")


def test_a_line_for_each_evaluation_and_a_table(tmp_path, lines):
    log = make_log(tmp_path)
    for step, forces in ((10, 0.2), (20, 0.1), (30, 0.15)):
        train(log, step)
        log.log(VAL | {"forces_mae": forces}, step, "val")
        log.log(NOISE, step, "val")
        log.evaluated()
    log.finish()
    first, second, third, table = lines()
    assert first == (
        "evaluation at epoch 1, step 10: F 0.2 eV/Å, E 0.5 eV, noise 0.01 Å at sigma 0.10 Å, loss 2"
    )
    assert second.endswith("loss 2 (best so far)")
    assert not third.endswith("(best so far)")
    rows = [row.split() for row in table.strip().splitlines()]
    assert rows[0] == ["first", "best", "last"]
    assert rows[1][-3:] == ["10", "20", "30"]
    assert rows[2] == ["force", "MAE", "(eV/Å)", "0.2", "0.1", "0.15"]
    assert len(rows) == 6


def test_a_host_that_counts_from_zero_and_evaluates_the_end_twice(tmp_path, lines):
    log = make_log(tmp_path, first_step=0)
    train(log, 29)
    for _ in range(2):
        log.log(VAL, 29, "val")
        log.evaluated()
    assert [line.split(":")[0] for line in lines()] == ["evaluation at epoch 1, step 30"]


def test_a_resumed_run_knows_the_evaluations_before(tmp_path, lines):
    log = make_log(tmp_path)
    for step in (10, 20):
        train(log, step)
        log.log(VAL | {"forces_mae": step / 100}, step, "val")
    log = make_log(tmp_path)
    train(log, 11)
    log.log(VAL | {"forces_mae": 0.3}, 20, "val")
    log.finish()
    assert lines()[-1].strip().splitlines()[1].split()[-3:] == ["10", "10", "20"]


def test_what_is_not_evaluated_is_not_shown(tmp_path, lines):
    log = make_log(tmp_path)
    log.log({"average_distance_within_threshold": 0.5}, 0, "val")
    log.finish()
    assert lines() == []
