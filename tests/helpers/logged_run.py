"""Log steps as fairchem's loop does, in a process that may be killed in the middle of one."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import wandb

from dens.runs.log import RunLog
from dens.runs.wandb_files import read_records


def log_steps(kind: str, folder: str, first: int, last: int, killed: bool = False) -> None:
    """Log steps ``first`` to ``last``, with an evaluation every fourth step."""
    import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies its imports
    from fairchem.core.common.registry import registry

    config = {
        "cmd": {"timestamp_id": "the-run", "identifier": "", "logs_dir": folder},
        "logger": {"name": kind, "project": "tests"},
        "trainer": "dens",
    }
    log = RunLog(registry.get_logger_class(kind)(config), folder, config, to_wandb=kind == "wandb")
    for step in range(first, last + 1):
        log.log({"grad_norm": 2.0 * step}, step=step, split="train")
        if killed and step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        main = {"loss": 1.0 / step, "lr": 1e-3, "epoch": step / 8, "step": step}
        log.log(main, step=step, split="train")
        if step % 4 == 0:
            log.log({"forces_mae": 1.0 / step, "epoch": step / 8}, step=step, split="val")
            errors = {"denoising_pos_mae/sigma=0.10": 0.1 / step}
            log.log(errors, step=step, split="val")
    if kind == "tensorboard":
        log.writer.close()


def end_wandb_run() -> None:
    """End the W&B run, and wait until its file is complete, which ``wandb.finish`` does not."""
    wandb.finish()
    wandb.teardown()


def read_rows(path: Path) -> list[dict]:
    """Read the logged rows of a ``.wandb`` file: names to values, among them W&B's ``_step``."""
    rows = []
    for record in read_records(path):
        if record.HasField("history"):
            items = record.history.item
            row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
            rows.append({**row, "_step": record.history.step.num})
    return rows


if __name__ == "__main__":
    kind, folder, first, last, killed = sys.argv[1:]
    log_steps(kind, folder, int(first), int(last), killed == "killed")
