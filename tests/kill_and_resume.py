"""Kill and resume a training run repeatedly, and compare it with an undisturbed run.

    python tests/kill_and_resume.py --steps 200 --kills 20

Kills come at random moments: every third while a checkpoint is written, and every fifth is a
SIGTERM, after which the run saves. Each time the run resumes from its last checkpoint. At the end
weights, moving averages, optimizer, schedule, best checkpoint and log must equal those of the other
run bit for bit. The runs are forked from a process that has only done their imports: one that has
trained has threads, which its forks would lack.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import click
import torch
import yaml
from helpers.backbones import model_of
from helpers.command_runner import fork_server
from helpers.trainers import morered_config, trainer_config, write_dataset

from dens.cli import main
from dens.fairchem1.backbones.families import EQUIFORMER_V2, ESEN
from dens.fairchem1.checkpoints import state
from dens.safe.checkpoints import safe_load

STRUCTURES, BATCH = 20, 2
STOPPED = 128 + signal.SIGTERM
MODELS = {  # of DeNS
    "stress": model_of(EQUIFORMER_V2, stress=True, alpha_drop=0.1, drop_path_rate=0.1),
    "gradients": model_of(ESEN, gradient=True, stress=True),
}
CLOCK = ("per_second", "memory", "time")  # in the names of metrics that differ from run to run


def write_config(folder: Path, steps: int, of: str = "stress") -> Path:
    """Write data and config of a run with EMA and evaluations, and dropout where there is any.

    Args:
        of: a name in :data:`MODELS`, or ``morered``.
    """
    src = write_dataset(folder / "data", n=STRUCTURES, virial=True)
    optim = {
        "batch_size": BATCH,
        "max_epochs": steps * BATCH // STRUCTURES,
        "checkpoint_every": 8,
        "eval_every": 10,
    }
    if of == "morered":
        parts, method = morered_config(src, optim=optim), "morered"
    else:
        parts, method = trainer_config(src, model=MODELS[of], optim=optim), "dens"
    config = {
        name: parts[name]
        for name in ("task", "model", "outputs", "dataset", "loss_functions", "evaluation_metrics")
    }
    config |= {"trainer": method, "optim": parts["optimizer"], "logger": "tensorboard"}
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(folder: Path, name: str, kill_in_save: int | None) -> None:
    """Train in this process; resume from the last checkpoint of the run ``name``, if any."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open(folder / f"{name}.txt", "a")  # noqa: SIM115
    torch.set_num_threads(1)
    if kill_in_save is not None:
        _kill_in_save(kill_in_save)
    argv = ["--config-yml", "config.yml", "--cpu", "--print-every", "9", "--timestamp-id", name]
    checkpoint = Path("checkpoints", name, "checkpoint.pt")
    main(argv + ["--checkpoint", str(checkpoint)] * checkpoint.exists())


def _kill_in_save(moment: int) -> None:
    """Let this process kill itself while it writes its second checkpoint from now.

    Args:
        moment: 0 after half the file, 1 before the file is moved into place, 2 after that.
    """
    left = iter([False, True])
    write, replace, die = torch.save, os.replace, lambda: os.kill(os.getpid(), signal.SIGKILL)

    def torn_write(content, file):
        write(content, file)
        if next(left, False):
            if moment == 0:  # half the file
                file.truncate(file.tell() // 2)
                die()
            os.replace = (lambda *_: die()) if moment == 1 else replace_and_die

    def replace_and_die(*paths):
        replace(*paths)
        die()

    state.torch = SimpleNamespace(save=torn_write)


def start(folder: Path, name: str, kill_in_save: int | None = None):
    """Start :func:`run` in a process of its own."""
    process = fork_server.Process(target=run, args=(folder, name, kill_in_save))
    process.start()
    return process


def disturbed_run(folder: Path, steps: int, kills: int, seed: int) -> int:
    """Train to the end despite ``kills`` kills, spread over the steps; return how many hit."""
    rng = random.Random(seed)
    hit = 0
    for i in range(kills):
        in_save = rng.randrange(3) if i % 3 == 2 else None
        process = start(folder, "disturbed", in_save)
        aim = 0.9 * steps * (i + rng.random()) / kills
        while process.is_alive() and (in_save is not None or steps_done(folder) < aim):
            process.join(0.002)
        process.join(rng.uniform(0, 0.1))
        if process.is_alive():
            os.kill(process.pid, signal.SIGTERM if i % 5 == 4 else signal.SIGKILL)
            process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode in (-signal.SIGKILL, STOPPED, -signal.SIGTERM), process.exitcode
        hit += 1
    process = start(folder, "disturbed")
    process.join()
    said = (folder / "disturbed.txt").read_text()[-2000:]
    assert process.exitcode == 0, f"exit status {process.exitcode} after: {said}"
    return hit


def steps_done(folder: Path) -> int:
    path = folder / "logs" / "tensorboard" / "disturbed" / "metrics.jsonl"
    return path.read_text().count('"split": "train"') if path.exists() else 0


def differences(folder: Path) -> list[str]:
    """List the differences between the two runs, except those that depend on the clock."""
    found = []
    for name in ("checkpoint.pt", "best_checkpoint.pt"):
        a, b = (safe_load(folder / "checkpoints" / r / name) for r in ("plain", "disturbed"))
        found += [f"{name}: {where}" for where in unequal(a, b)]
    logs = [read_log(folder, run) for run in ("plain", "disturbed")]
    found += [f"log: line {i}" for i, (a, b) in enumerate(zip(*logs)) if a != b]  # noqa: B905
    if len(logs[0]) != len(logs[1]):
        found.append(f"log: {len(logs[1])} lines instead of {len(logs[0])}")
    return found


def read_log(folder: Path, name: str) -> list[dict]:
    text = (folder / "logs" / "tensorboard" / name / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    lines = [line for line in lines if line["split"] != "system"]
    return [{k: v for k, v in x.items() if not any(c in k for c in CLOCK)} for x in lines]


def unequal(a, b, where: str = "") -> list[str]:
    """List the keys in which two checkpoints differ, except command line, cluster and times."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict):
        keys = [key for key in [*a, *(k for k in b if k not in a)] if key not in ("cmd", "slurm")]
        return [
            x for key in keys for x in unequal(a.get(key), b.get(key), f"{where}.{key}")
            if not any(c in str(key) for c in CLOCK)
        ]  # fmt: skip
    if isinstance(a, (list, tuple)):
        pairs = enumerate(zip(a, b, strict=True))
        return [x for i, (p, q) in pairs for x in unequal(p, q, f"{where}[{i}]")]
    return [] if a == b else [where]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), required=False)
@click.option("--steps", default=200, show_default=True)
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
def command(folder: Path | None, steps: int, kills: int, seed: int) -> None:
    """Compare a run of STEPS steps with one that is killed KILLS times."""
    # said at the end of the semaphores of killed runs, which are removed
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    with tempfile.TemporaryDirectory() as temporary:
        click.echo(compare(folder or Path(temporary), steps, kills, seed))


def compare(folder: Path, steps: int, kills: int, seed: int = 0, of: str = "stress") -> str:
    """Make both runs, compare them, and return the result in words.

    Raises:
        AssertionError: they differ; lists the differences.
    """
    write_config(folder, steps, of)
    process = start(folder, "plain")
    process.join()
    assert process.exitcode == 0, (folder / "plain.txt").read_text()[-2000:]
    hit = disturbed_run(folder, steps, kills, seed)
    found = differences(folder)
    assert not found, "\n".join(found)
    lines = read_log(folder, "disturbed")
    trained = [line["step"] for line in lines if line["split"] == "train"]
    assert trained == list(range(1, steps + 1)), trained
    return f"{hit} kills in {steps} steps: weights, state and {len(lines)} log lines are the same"


if __name__ == "__main__":
    command()
