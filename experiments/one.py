"""Train and measure the run of ``FOLDER/run.json``: ``python -m experiments.one FOLDER``.

Training uses the ordinary launcher, and resumes the run's last checkpoint if there is one. Then two
sets of weights are measured, on the validation and the test sets: the best checkpoint by
validation, and the last raw weights. The results are written to ``FOLDER/measured.json``.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import sys
from itertools import islice
from pathlib import Path

import torch
from fairchem.core.common.utils import new_trainer_context

from dens.cli import main
from dens.fairchem1.launch import parse_args, read_config
from dens.random import make_generator
from dens.runs.monitor.denoise import best_weights, denoise
from experiments.timed import timed, train_and_measure

WEIGHTS = {"best": "best_checkpoint.pt", "final": "checkpoint.pt"}
DENOISED = 400  # structures to measure denoising on: enough, and each is visited six times
KEPT = ("energy_mae", "forces_mae", "forces_cosine_similarity")


def train(folder: Path, name: str, seed: int) -> None:
    """Train, and append the time to ``times.jsonl``, even if stopped.

    Raises:
        SystemExit: training was stopped, or failed.
    """
    run = ["--run-dir", str(folder), "--timestamp-id", name, "--seed", str(seed)]
    with timed(folder):
        main(["--config", str(folder / "config.yml"), *run])


def measure(folder: Path, name: str, seed: int, tests: dict, sigmas: list) -> dict:
    """Measure errors by weights and test set (eV, eV/Å, Å); add steps and number of parameters.

    Raises:
        ValueError: the last checkpoint is not of the last step.
    """
    checkpoints = folder / "checkpoints" / name
    measured: dict = {"errors": {weights: {} for weights in WEIGHTS}, "denoising": {}}
    for test, src in {"val": None, **tests}.items():
        argv = ["--config", str(folder / "config.yml"), "--mode", "validate", "--debug"]
        argv += ["--checkpoint", str(checkpoints / WEIGHTS["final"]), "--seed", str(seed)]
        argv += [f"--dataset.val.src={src}"] * (src is not None)
        with new_trainer_context(config=read_config(*parse_args(argv))) as context:
            trainer = context.trainer
            for weights, file in WEIGHTS.items():
                trainer.load_checkpoint(str(checkpoints / file))
                if weights == "final":
                    trainer.ema = None
                    measured |= _size(trainer)
                metrics = trainer.validate("val", disable_tqdm=True)
                kept = {error: metrics[error]["metric"] for error in KEPT if error in metrics}
                measured["errors"][weights][test] = kept
                if weights == "best" and trainer.dens.prob > 0 and src is not None:
                    found = {f"{sigma:g}": denoising(trainer, sigma, seed) for sigma in sigmas}
                    measured["denoising"][test] = found
    return measured


def _size(trainer) -> dict[str, int]:
    steps = trainer.config["optim"]["max_epochs"] * len(trainer.train_loader)
    if trainer.step != steps:
        raise ValueError(
            f"the last checkpoint is of step {trainer.step}, not {steps}: checkpoint_every must "
            "divide the number of steps (optim.checkpoint_every)"
        )
    return {"steps": steps, "parameters": sum(p.numel() for p in trainer.model.parameters())}


def denoising(trainer, sigma: float, seed: int) -> dict[str, float]:
    """Measure the mean absolute error of the noise, Å: with and without forces, and of zeros.

    Of a large set, evenly spaced batches with about DENOISED structures are used.
    """
    dataset = trainer.val_loader.dataset
    step = max(1, len(dataset) // DENOISED)
    errors = {}
    with best_weights(trainer):
        for probe in trainer.objective.probes([sigma], dataset[0]):
            noise, predicted = [], []
            passes = denoise(
                trainer,
                probe.objective,
                islice(trainer.val_loader, 0, None, step),
                lambda i, _: make_generator(seed, 0, i),  # a key that recorded results hold
            )
            for batch, prediction in passes:
                pred, true = trainer.objective.noise(prediction.values, batch)
                noise.append(true[batch.noise_mask])
                predicted.append(pred[batch.noise_mask])
            key = "not_told" if probe.hidden else "told"
            noise = torch.cat(noise)
            errors[key] = (torch.cat(predicted) - noise).abs().mean().item()
    return {**errors, "zeros": noise.abs().mean().item()}


if __name__ == "__main__":
    train_and_measure(Path(sys.argv[1]), train, measure)
