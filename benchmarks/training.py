"""Train models for benchmarks in processes of their own, and keep what is trained."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LAUNCHER = "from dens.cli import main; main()"


def run_dens(arguments: Sequence[str | Path], log: Path) -> None:
    """Run ``dens``, or ``fairchem``, with its output in a file.

    Raises:
        ValueError: it failed; with the last line of its output.
    """
    command = [sys.executable, "-c", _LAUNCHER, *map(str, arguments)]
    with open(log, "w") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file)
    if done.returncode:
        last = log.read_text(encoding="utf-8").splitlines()[-1:]
        raise ValueError(f"a process of dens failed, see {log}: {' '.join(last)}")


def train(config: str, name: str, folder: Path, settings: Sequence[str]) -> Path:
    """Train a model, unless it is trained, and return its last checkpoint.

    Training that was stopped goes on from its last checkpoint.

    Args:
        config: of the training, relative to the repository.
        name: of the run.
        folder: where runs and checkpoints lie; ``NAME.json`` tells how the model was made.
        settings: options of the launcher.

    Raises:
        ValueError: training failed, or a model of this name was made with other settings.
    """
    folder = folder.resolve()
    mark, made_by = folder / f"{name}.json", {"config": config, "settings": [*settings]}
    if mark.exists():
        kept = json.loads(mark.read_text(encoding="utf-8"))
        if kept["made_by"] != made_by:
            raise ValueError(
                f"{mark} is of other settings than are asked for now: choose another folder, or "
                "remove this one (--runs)"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        kept = {"made_by": made_by, "done": False}
        mark.write_text(json.dumps(kept), encoding="utf-8")
    if not kept["done"]:
        places = ["--run-dir", folder, "--timestamp-id", name]
        quiet = ["--logger=tensorboard", "--optim.num_workers=0"]
        run_dens(["--config", config, *places, *quiet, *settings], folder / f"{name}.log")
        mark.write_text(json.dumps({**kept, "done": True}), encoding="utf-8")
    return folder / "checkpoints" / name / "checkpoint.pt"
