"""The progress bar, and the lines that fairchem prints beside it."""

from __future__ import annotations

import logging

import pytest

from dens.runs.log import RunLog
from dens.runs.progress import Progress


@pytest.fixture(autouse=True)
def _root_logger():
    root = logging.getLogger()
    before = list(root.filters), list(root.handlers)
    yield
    root.filters, root.handlers = before


class NoLogger:
    def log(self, update_dict, step, split="") -> None:
        pass


def train(log: RunLog, steps: int, of_epoch: int) -> None:
    for step in range(1, steps + 1):
        metrics = {"loss": 2.5, "forces_mae": 0.25, "denoising_pos_mae": 0.0625, "lr": 1e-3}
        log.log(metrics | {"step": step, "epoch": step / of_epoch}, step=step, split="train")


def test_one_bar_for_each_epoch_with_errors_and_eta(tmp_path, capsys):
    log = RunLog(NoLogger(), tmp_path, progress=Progress(bar=True))
    train(log, 12, of_epoch=8)
    log.progress.close()
    shown = capsys.readouterr().err.replace("\r", "\n").split("\n")
    first = [text for text in shown if text.startswith("epoch 1: 100%")][-1]
    assert "8/8 [" in first
    assert "loss=2.5, F=0.25, noise=0.0625" in first
    last = [text for text in shown if text.startswith("epoch 2")][-1]
    assert " 4/8 [" in last
    assert "<" in last  # the time left


@pytest.mark.parametrize(
    ("progress", "printed"),
    [({"bar": True}, False), ({"quiet": True}, False), ({"bar": False}, True), ({}, True)],
)
def test_training_metrics_are_printed_once(progress, printed, tmp_path, caplog, capsys):
    """Without a terminal, as here, fairchem's lines stay; evaluations are always printed."""
    log = RunLog(NoLogger(), tmp_path, progress=Progress(**progress))
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
    assert ("epoch 1" in capsys.readouterr().err) == bool(progress.get("bar"))
