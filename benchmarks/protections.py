"""Measure what safe reading, random streams and finite checks cost a training step.

    python -m benchmarks.protections --config configs/oc20/eqv2_dens_demo.yml

Each is timed with and without, in turns, and the difference set against a whole step (reading the
batch included). Times are those of this process on one core, medians.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import math
import pickle
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from fairchem.core.common.utils import new_trainer_context

from benchmarks.measure import in_turns, seconds_of
from dens.data.soundness import find_fault
from dens.denoising.corruption import sample_draws
from dens.fairchem1.checkpoints.state import write_checkpoint
from dens.fairchem1.data.datasets import open_dataset
from dens.fairchem1.launch import parse_args, read_config
from dens.random import Stream
from dens.safe.pickles import load_record


def medians(*arms: Callable[[], object], rounds: int) -> list[float]:
    """Return the median seconds of each arm, in turns, after a warm-up round."""
    timed = {str(i): partial(seconds_of, arm, "cpu") for i, arm in enumerate(arms)}
    return [median(seconds[1:]) for seconds in in_turns(timed, rounds + 1).values()]


def step(trainer, batch) -> None:
    """Take one training step as fairchem's loop does."""
    trainer.step += 1
    trainer.epoch = 0.5
    trainer.model.train()
    batch = batch.clone()
    out = trainer._forward(batch)
    loss = trainer._compute_loss(out, batch)
    trainer.metrics = trainer._compute_metrics(out, batch, trainer.evaluator, trainer.metrics)
    trainer._backward(loss)
    trainer._unfinished = None  # nothing to save


def raw_records(dataset, count: int) -> list[bytes]:
    """Read the first records of an LMDB folder as bytes."""
    with dataset.envs[0].begin() as transaction:
        return [transaction.get(f"{i}".encode("ascii")) for i in range(count)]


def protections(trainer, batch, records: list[bytes]) -> dict[str, tuple[Callable, Callable]]:
    """Return, for each protection, a function with it and one without."""
    out = trainer._forward(batch)
    loss = trainer._compute_loss(out, batch)
    loss.backward()
    parameters = list(trainer.model.parameters())
    labels = {"energy": "system", "forces": "atom", "fixed": "atom"}
    data = [load_record(record) for record in records]
    for structure in data:
        structure.energy, structure.forces = structure.y, structure.force
    clip = torch.nn.utils.clip_grad_norm_

    def nothing() -> None:
        pass

    return {
        "records: allowed classes only": (
            lambda: [load_record(record) for record in records],
            lambda: [pickle.loads(record) for record in records],
        ),
        "records: complete and finite": (
            lambda: [find_fault(structure, labels) for structure in data],
            nothing,
        ),
        "noise: a stream for each structure": (
            lambda: trainer._draws(batch),
            lambda: sample_draws(batch.natoms, torch.Generator()),
        ),
        "dropout: seeded by the step": (
            lambda: torch.manual_seed(Stream.MODEL.generator(0, 0, trainer.step).initial_seed()),
            nothing,
        ),
        "loss: finite": (
            lambda: trainer.note_not_finite(trainer._loss_values, out, batch),
            nothing,
        ),
        "gradient: finite": (
            lambda: clip(parameters, math.inf, error_if_nonfinite=True),
            lambda: clip(parameters, math.inf),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/oc20/eqv2_dens_demo.yml")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10)
    options, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    argv = ["--config-yml", options.config, "--debug", "--cpu", "--optim.num_workers=0"]
    config = read_config(*parse_args([*argv, *overrides]))
    with new_trainer_context(config=config) as context:
        trainer = context.trainer
        batch = next(iter(trainer.train_loader))
        records = raw_records(open_dataset(config["dataset"]["train"]["src"]), len(batch.natoms))
        trainer.model.train()
        trainer.step, trainer.epoch = 1, 0.5
        arms = protections(trainer, batch, records)
        (whole,) = medians(lambda: step(trainer, batch), rounds=options.steps)
        rows = {name: medians(*pair, rounds=options.rounds) for name, pair in arms.items()}
        saving = time_saving(trainer)
    print(f"{options.config}: {len(batch.natoms)} structures, {len(batch.pos)} atoms, torch "
          f"{torch.__version__}, one core; a step takes {whole:.3f} s\n")  # fmt: skip
    print("| protection | with, ms | without, ms | share of a step |\n|---|---|---|---|")
    for name, (with_it, without) in rows.items():
        share = (with_it - without) / whole
        print(f"| {name} | {with_it * 1e3:.3f} | {without * 1e3:.3f} | {share:.2%} |")
    total = sum(a - b for a, b in rows.values()) / whole
    print(f"| together | | | {total:.2%} |\n")
    print(f"A checkpoint, synced and renamed: {saving[0] * 1e3:.0f} ms; written only: "
          f"{saving[1] * 1e3:.0f} ms.")  # fmt: skip


def time_saving(trainer) -> list[float]:
    """Time saving with and without the protection, waiting for the disk included."""
    state = {"weights": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    found: list[list[float]] = [[], []]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(10):
            for times, write in zip(found, (write_checkpoint, _write), strict=True):
                begin = time.perf_counter()
                write(state, folder, "checkpoint.pt")
                times.append(time.perf_counter() - begin)
    return [median(times) for times in found]


def _write(state: dict, folder: str, name: str) -> None:
    torch.save(state, Path(folder, name))


if __name__ == "__main__":
    main()
