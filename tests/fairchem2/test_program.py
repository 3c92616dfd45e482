"""Test training through the program, on two ranks, with W&B offline and bfloat16."""

from __future__ import annotations

import os
import subprocess
import sys

import yaml
from helpers.paths import ROOT
from helpers.stock2 import make_config

from dens.runs.history import read_history
from dens.runs.wandb_files import read_records

PROGRAM = "import sys; sys.argv[0] = 'fairchem'; from dens.cli import main; main()"


def fairchem(*argv: str, cwd) -> subprocess.CompletedProcess:
    """Run the program of this package."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def wandb_history(folder) -> dict[int, dict]:
    """Read what an offline run has logged, by step."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found: dict[int, dict] = {}
    for record in read_records(path):
        if record.HasField("history"):
            items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            found.setdefault(record.history.step.num, {}).update(items)
    return found


def test_two_ranks_with_wandb_and_bf16(tmp_path, data):
    logger = {
        "_target_": "fairchem.core.common.logger.WandBSingletonLogger.init_wandb",
        "_partial_": True,
        "entity": "nobody",
        "project": "test",
    }
    job = {"debug": False, "logger": logger, "scheduler": {"ranks_per_node": 2}}
    config = make_config(tmp_path / "runs", {"oc20": data}, unit={"bf16": True}, job=job)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    done = fairchem("-c", "x.yaml", "runner.train_eval_unit.dens.sigma=0.05", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = tmp_path / "runs" / "run" / "logs"
    steps = [line["step"] for line in read_history(logs / "metrics.jsonl")]
    assert sorted(set(steps)) == list(range(4))
    logged = wandb_history(logs)
    assert {"train/loss", "train/loss_noise", "train/corrupted_fraction"} <= logged[0].keys()
    assert {"val/forces_mae", "val/denoising_pos_mae/sigma=0.05", "train/loss"} <= logged[3].keys()
    assert any(key.startswith("val/figures/noise_parity") for key in logged[3])


def test_a_mistake_is_named(tmp_path, data):
    config = make_config(tmp_path / "runs", {"oc20": data})
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    done = fairchem("-c", "x.yaml", "+runner.train_eval_unit.dens.sigmaa=1", cwd=tmp_path)
    assert done.returncode != 0
    expected = "unknown key sigmaa = 1 (runner.train_eval_unit.dens.sigmaa): did you mean sigma?"
    assert expected in done.stderr
