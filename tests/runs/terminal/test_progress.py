"""The progress bar, and the lines that fairchem prints beside it."""

from __future__ import annotations

import logging
import sys
import time

import pytest

from dens.runs.log import RunLog
from dens.runs.terminal.output import terminal_output
from dens.runs.terminal.progress import Plan, Progress, follow


@pytest.fixture(autouse=True)
def _root_logger():
    root = logging.getLogger()
    before = list(root.filters), list(root.handlers)
    yield
    root.filters, root.handlers = before


class NoLogger:
    def log(self, update_dict, step, split="") -> None:
        pass


def make_log(folder, monkeypatch, *, terminal: bool = False, quiet: bool = False) -> RunLog:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    return RunLog(NoLogger(), folder, {"logger": {"quiet": quiet}})


def train(log: RunLog, steps: int, of_epoch: int) -> None:
    for step in range(1, steps + 1):
        metrics = {"loss": 2.5, "forces_mae": 0.25, "denoising_pos_mae": 0.0625, "lr": 1e-3}
        log.log(metrics | {"step": step, "epoch": step / of_epoch}, step=step, split="train")


def test_one_bar_for_each_epoch_with_errors_and_eta(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    log = make_log(tmp_path, monkeypatch, terminal=True)
    train(log, 12, of_epoch=8)
    log.progress.close()
    shown = capsys.readouterr().err.replace("\r", "\n").split("\n")
    first = [text for text in shown if text.startswith("epoch 1: 100%")][-1]
    assert "8/8 [" in first
    assert "loss=2.5, F=0.25, noise=0.0625" in first
    last = [text for text in shown if text.startswith("epoch 2")][-1]
    assert " 4/8 [" in last
    assert "<" in last  # the time left


def test_plain_lines_come_ever_more_rarely(tmp_path, capsys):
    """Without a terminal: after 10 s, later after a hundredth of the time since the start."""
    clock = iter(range(0, 10**6, 5))
    with terminal_output(tmp_path):
        progress = Progress(quiet=False, clock=lambda: next(clock))
        progress.plan = Plan(4000, 1000)
        for step in range(1, 4001):
            progress.step({"loss": 2.5, "forces_mae": 0.25, "step": step, "epoch": step / 1000})
    shown = capsys.readouterr()
    assert "\r" not in shown.out + shown.err
    lines = shown.out.splitlines()
    assert lines[0] == (
        "step 2 of 4,000 (epoch 1 of 4): loss 2.5, F 0.25 eV/Å; 5.00 s/step, 5:33:10 left"
    )
    assert [line.split()[1] for line in lines[1:3]] == ["4", "6"]
    assert 300 < len(lines) < 500
    assert "0:00:" in lines[-1]


def test_an_evaluation_is_followed_by_plain_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time, "monotonic", iter(range(0, 1000, 25)).__next__)
    with terminal_output(tmp_path):
        assert list(follow(range(9), total=9, desc="device 0", position=0)) == [*range(9)]
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == "evaluation: 2 of 9"
    assert shown.err == ""


@pytest.mark.parametrize(
    ("terminal", "quiet", "slurm", "printed", "bar"),
    [
        (True, False, False, False, True),
        (False, True, False, False, False),
        (True, True, False, False, False),
        (False, False, False, True, False),
        (True, False, True, True, False),
    ],
)
def test_training_metrics_are_printed_once(
    terminal, quiet, slurm, printed, bar, tmp_path, caplog, capsys, monkeypatch
):
    """Without a terminal or under Slurm fairchem's lines stay; evaluations are always printed."""
    if slurm:
        monkeypatch.setenv("SLURM_JOB_ID", "1")
    else:
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    log = make_log(tmp_path, monkeypatch, terminal=terminal, quiet=quiet)
    root = logging.getLogger()
    with caplog.at_level(logging.INFO):
        for function, module in (("train", "ocp_trainer"), ("validate", "base_trainer")):
            record = root.makeRecord(
                "root", logging.INFO, f"{module}.py", 1, f"line of {function}", (), None, function
            )
            root.handle(record)
    train(log, 2, of_epoch=8)
    log.progress.close()
    assert ("line of train" in caplog.text) == printed
    assert "line of validate" in caplog.text
    assert ("epoch 1" in capsys.readouterr().err) == bar
