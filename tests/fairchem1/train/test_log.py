"""The log of a run in W&B's offline files and TensorBoard's, after a kill and a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fairchem.core.common.registry import registry
from helpers.logged_run import end_wandb_run, log_steps, read_rows
from helpers.paths import TESTS
from helpers.trainers import STOCK_MODEL, trainer_config, write_dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dens.fairchem1.train.logger import keep_logs
from dens.runs.log import RunLog
from dens.runs.wandb_files import read_records, run_files

SCRIPT = TESTS / "helpers/logged_run.py"


def run(folder: Path, first: int, last: int, killed: bool = False) -> None:
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
    arguments = ["wandb", str(folder), str(first), str(last), "killed" if killed else "whole"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == (-9 if killed else 0), done.stderr


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """Killed in step 10, resumed after step 4, stopped after 12 and resumed after 8."""
    folder = tmp_path_factory.mktemp("wandb")
    run(folder, 1, 10, killed=True)
    assert history(folder)[-1] == {"step": 10, "split": "train", "grad_norm": 20.0}
    run(folder, 5, 12)
    run(folder, 9, 14)
    return folder


def test_metrics_file_holds_every_step_once(resumed):
    lines = history(resumed)
    train = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 15))
    assert all(line["grad_norm"] == 2 * line["step"] == 2 / line["loss"] for line in train)
    val = [line for line in lines if line["split"] == "val"]
    assert [line["step"] for line in val] == [4, 8, 12]
    assert all("denoising_pos_mae/sigma=0.10" in line and "forces_mae" in line for line in val)


def test_offline_wandb_files_hold_every_step_once(resumed):
    """Including the steps before the kill that W&B had not written yet."""
    files = run_files(resumed, "the-run")
    assert len(files) == 3
    rows = [row for file in files for row in read_rows(file)]
    assert [row["_step"] for row in rows] == list(range(1, 15))
    for row in rows:
        assert row["train/loss"] == pytest.approx(1 / row["_step"])
        assert row["train/grad_norm"] == 2 * row["_step"]
        assert row["train/step"] == row["_step"]
        assert ("val/forces_mae" in row) == (row["_step"] % 4 == 0)
    assert rows[7]["val/denoising_pos_mae/sigma=0.10"] == pytest.approx(0.0125)
    assert rows[7]["val/step"] == 8


@pytest.mark.parametrize("content", [b"else", b":W&B\0\0\0" + b"\0\0\0\0\4\0\1" + b"\xff" * 4])
def test_unreadable_wandb_files_are_one_warning(content, tmp_path, monkeypatch, caplog):
    """The format is W&B's own: if it changes, the run must go on."""
    folder = tmp_path / "wandb/offline-run-20200101_000000-the-run"
    folder.mkdir(parents=True)
    (folder / "run-the-run.wandb").write_bytes(content)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_steps("wandb", str(tmp_path), 1, 2)
    end_wandb_run()
    (warning,) = [r for r in caplog.records if r.levelname == "WARNING" and "W&B" in r.message]
    assert "cannot be read" in warning.message
    assert [line["step"] for line in history(tmp_path)] == [1, 2]


def test_wandb_has_axes_summaries_settings_and_versions(resumed):
    records = list(read_records(run_files(resumed, "the-run")[1]))
    metrics = {r.metric.name: r.metric for r in records if r.WhichOneof("record_type") == "metric"}
    error = metrics["val/forces_mae"]
    assert error.step_metric == "val/step"
    assert (error.summary.min, error.summary.last, error.summary.max) == (True, True, False)
    assert metrics["train/lr"].step_metric == "train/step"
    config = {}
    for record in records:
        kind = record.WhichOneof("record_type")
        updates = record.run.config.update if kind == "run" else record.config.update
        config |= {u.key: json.loads(u.value_json) for u in updates if kind in ("run", "config")}
    assert config["trainer"] == "dens"
    assert config["environment"]["packages"]["fairchem-core"] == "1.10.0"
    assert "dens" in config["environment"]["git"]


def test_config_is_written_beside_the_metrics(resumed):
    config = yaml.safe_load((resumed / "config.yml").read_text())
    assert config["logger"] == {"name": "wandb", "project": "tests"}
    assert config["environment"]["packages"]["torch"]


def test_tensorboard_shows_every_step_once(tmp_path):
    log_steps("tensorboard", str(tmp_path), 1, 6)
    log_steps("tensorboard", str(tmp_path), 5, 8)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(step, pytest.approx(1 / step)) for step in range(1, 9)]
    assert [line["step"] for line in history(tmp_path) if line["split"] == "train"] == [
        *range(1, 9)
    ]


def test_a_stock_trainer_keeps_a_log_as_well(tmp_path):
    """The baseline is trained by a trainer of fairchem."""
    config = trainer_config(
        write_dataset(tmp_path / "data"),
        model=STOCK_MODEL,
        is_debug=False,
        logger="tensorboard",
        run_dir=str(tmp_path),
        timestamp_id="base",
    )
    del config["optimizer"]["dens"]
    with keep_logs():
        registry.get_trainer_class("equiformerv2_forces")(**config).train(disable_eval_tqdm=True)
    folder = tmp_path / "logs/tensorboard/base"
    splits = [line["split"] for line in history(folder)]
    assert splits == ["train", "train", "val"] * 2
    assert yaml.safe_load((folder / "config.yml").read_text())["method"] == "baseline"
    assert registry.get_logger_class("tensorboard").__name__ == "TensorboardLogger"


class OwnLogger:
    """A logger of a project."""

    colour = "blue"

    def __init__(self) -> None:
        self.calls = []

    def log(self, update_dict, step, split="") -> None:
        self.calls.append((update_dict, step, split))


def test_a_projects_own_logger_gets_everything(tmp_path):
    own = OwnLogger()
    log = RunLog(own, tmp_path, {"cmd": {}})
    log.log({"forces_mae": 0.5, "text": "kept"}, step=3, split="val")
    assert own.calls == [({"forces_mae": 0.5, "text": "kept"}, 3, "val")]
    assert log.colour == "blue"
    with pytest.raises(AttributeError, match="flavour"):
        log.flavour  # noqa: B018
