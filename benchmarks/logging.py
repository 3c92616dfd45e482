"""Measure what logging costs a training step, and denoising validation an evaluation.

    python -m benchmarks.logging --config configs/oc20/eqv2_dens_demo.yml --out logging.json \
        --dataset.val.src=data/demo/train

Every batch is trained on twice, without and with logging: an offline W&B run with metrics.jsonl,
the speed, and at their interval the shares of the gradient. Evaluations alternate with denoising
validations. The order alternates as well, and times are compared within a pair. On a CPU the time
is that of this process; W&B writes its file in another process, which adds to the wall time if
they compete for the cores.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import wandb
from fairchem.core.common.logger import WandBLogger
from fairchem.core.common.utils import new_trainer_context

from dens.fairchem1.launch import parse_args, read_config
from dens.runs.log import RunLog
from dens.runs.monitor.training import TrainingMonitor


class NoMonitor:
    """Stand-in for the trainer's monitor that measures nothing."""

    def step(self, batch: Any, *, counts: bool = True) -> None: ...

    def gradients(self, terms: dict) -> None: ...

    def after_validation(self, split: str, dataset: Any) -> None: ...


def train_step(trainer, batch) -> None:
    """Train one step as the training loop does, and log it."""
    trainer.step += 1
    trainer.epoch = trainer.step / len(trainer.train_loader)
    trainer.model.train()
    out = trainer._forward(batch)
    loss = trainer._compute_loss(out, batch)
    trainer.metrics = trainer._compute_metrics(out, batch, trainer.evaluator, {})
    trainer.metrics = trainer.evaluator.update("loss", loss.item(), trainer.metrics)
    trainer._backward(loss)
    metrics = {name: metric["metric"] for name, metric in trainer.metrics.items()}
    metrics |= {"lr": trainer.scheduler.get_lr(), "epoch": trainer.epoch, "step": trainer.step}
    if trainer.logger is not None:
        trainer.logger.log(metrics, step=trainer.step, split="train")


def clocks(action: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Time an action: seconds of this process (of the wall on a GPU), and of the wall."""
    wall, process = time.perf_counter(), time.process_time()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return (time.perf_counter() - wall,) * 2
    return time.process_time() - process, time.perf_counter() - wall


def measure_steps(trainer, log: RunLog, monitor: TrainingMonitor, steps: int) -> dict[str, list]:
    """Time ``steps`` pairs of steps, bare and logged."""
    arms = {"bare": (None, NoMonitor()), "logged": (log, monitor)}
    found: dict[str, list] = {name: [] for name in arms}
    batches = iter(trainer.train_loader)
    for number in range(steps + 3):
        batch = next(batches, None)
        if batch is None:
            batches = iter(trainer.train_loader)
            batch = next(batches)
        for name in sorted(arms, reverse=bool(number % 2)):
            trainer.logger, trainer.monitor = arms[name]
            # corruption replaces fields, so each arm gets its own copy of the batch
            one = batch.clone()
            seconds = clocks(lambda one=one: train_step(trainer, one), trainer.device)
            if number >= 3:  # the first ones warm up
                found[name].append(seconds)
    return found


def measure_evaluations(trainer, monitor: TrainingMonitor, evaluations: int) -> dict[str, list]:
    """Time evaluations and denoising validations, after one of each to warm up."""
    trainer.logger, trainer.monitor = None, NoMonitor()
    arms = {
        "evaluation": lambda: trainer.validate("val", disable_tqdm=True),
        "denoising": lambda: monitor.validation(trainer.val_loader.dataset),
    }
    found: dict[str, list] = {name: [] for name in arms}
    for number in range(evaluations + 1):
        for name in sorted(arms, reverse=bool(number % 2)):
            seconds = clocks(arms[name], trainer.device)
            if number:
                found[name].append(seconds)
    return found


def ratios(over: list, under: list, clock: int) -> list[float]:
    """Compute the median and quartiles of the pairs' ratios."""
    pairs = [a[clock] / b[clock] for a, b in zip(over, under, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
    return [middle, low, high]


def summary(steps: dict, evaluations: dict, structures: int, of: int) -> dict[str, Any]:
    """Summarize the costs as fractions, by the process's clock and by the wall's."""
    result: dict[str, Any] = {"torch": torch.__version__, "structures": structures, "of": of}
    for clock, name in enumerate(("process", "wall")):
        logged, low, high = ratios(steps["logged"], steps["bare"], clock)
        denoised = ratios(evaluations["denoising"], evaluations["evaluation"], clock)
        total = [sum(s[clock] for s in steps[arm]) for arm in ("logged", "bare")]
        result[name] = {
            "step_seconds": statistics.median(s[clock] for s in steps["bare"]),
            "logging": [logged - 1, low - 1, high - 1],
            "logging_of_the_sum": total[0] / total[1] - 1,
            "denoising_validation": denoised,
        }
    return result


def run(config: dict[str, Any], steps: int, evaluations: int) -> dict[str, Any]:
    """Measure the costs for the trainer of a config."""
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    with tempfile.TemporaryDirectory() as folder, new_trainer_context(config=config) as context:
        trainer = context.trainer
        trainer.config["cmd"]["logs_dir"] = folder
        log = RunLog(WandBLogger(trainer.config), folder, trainer.config, to_wandb=True)
        monitor = trainer.make_monitor()
        n = len(trainer.val_dataset)
        structures = monitor.settings.structures(n, 2 * len(monitor.validation.sigmas))
        found = measure_steps(trainer, log, monitor, steps)
        result = summary(found, measure_evaluations(trainer, monitor, evaluations), structures, n)
        wandb.finish()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--out", type=Path, help="JSON file")
    args, overrides = parser.parse_known_args()
    argv = ["--config-yml", args.config, "--mode", "train", "--debug", *overrides]
    result = run(read_config(*parse_args(argv)), args.steps, args.evaluations)
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
