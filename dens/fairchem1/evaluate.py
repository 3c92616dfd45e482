"""Evaluate a checkpoint: S2EF and denoising errors, beside the untrained model's and zeros'."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import click
import torch
from fairchem.core.common import distutils
from fairchem.core.common.utils import new_trainer_context

from dens.fairchem1.describe_run import NOISE
from dens.fairchem1.launch import parse_args, read_config
from dens.metrics import Ratio, find_metric
from dens.objective import Objective
from dens.random import Stream
from dens.runs.monitor.denoise import best_weights, denoise
from dens.runs.terminal.output import terminal_output
from dens.settings import ConfigError

_MODES = {"val": "validate", "test": "predict"}  # fairchem's modes that read these splits


def evaluate_command(
    config_path: Path, checkpoint: Path, *, split: str = "val", overrides: Iterable[str] = ()
) -> None:
    """Print the errors that :func:`evaluate` finds for a checkpoint, as a table.

    Raises:
        ConfigError: there is no such checkpoint, or the config has no such split.
    """
    if not checkpoint.is_file():
        raise ConfigError(f"--checkpoint {checkpoint} does not exist")
    if split not in _MODES:
        raise ConfigError(f"--split must be one of {', '.join(_MODES)}, got {split!r}")
    argv = ["--config-yml", str(config_path), "--mode", _MODES[split], "--debug"]
    arguments = parse_args([*argv, "--checkpoint", str(checkpoint), *overrides])
    with terminal_output(noise=NOISE):
        config = read_config(*arguments)
        with new_trainer_context(config=config) as context:
            errors = evaluate(context.trainer, checkpoint, split)
            if distutils.is_master():
                click.echo(format_table(errors))


def evaluate(trainer, checkpoint: Path, split: str = "val") -> dict[str, dict[str, float]]:
    """Compute the errors of zeros, of the trainer's weights and of a checkpoint's EMA weights.

    Returns:
        For ``"zeros"``, ``"untrained"`` and ``"trained"``: errors by name, in eV, eV/Å and Å.
        For the denoising errors all structures of the split are corrupted once, with the same
        noise in every column.

    Raises:
        ConfigError: the config has no such split.
    """
    loaders = {"val": trainer.val_loader, "test": trainer.test_loader}
    if loaders.get(split) is None:
        raise ConfigError(f"--split must be one of the config's val, test, got {split!r}")
    columns = {"zeros": {}, "untrained": {}, "trained": {}}
    for name in ("untrained", "trained"):
        if name == "trained":
            trainer.load_checkpoint(str(checkpoint))
        metrics = trainer.validate(split, disable_tqdm=True)
        columns[name] = {key: metrics[key]["metric"] for key in metrics if find_metric(key).unit}
        objective = getattr(trainer, "objective", None)
        objective = objective and objective.corrupting_all(loaders[split].dataset[0])
        if objective is not None:
            errors, columns["zeros"] = denoising_errors(trainer, loaders[split], objective)
            columns[name].update(errors)
    return columns


def denoising_errors(
    trainer, loader, objective: Objective
) -> tuple[dict[str, float], dict[str, float]]:
    """Corrupt a loader's structures as the objective says and compute the denoising errors.

    Args:
        trainer: a trainer of an objective; its EMA weights are used if it has any.
        objective: how to corrupt.

    Returns:
        The model's errors, and those of predicting no noise, no force and the mean energy.
    """
    seed = trainer.config["cmd"]["seed"] or 0
    totals: tuple[dict[str, Ratio], ...] = ({}, {})
    with best_weights(trainer):
        draws = partial(_draw, seed)
        for batch, prediction in denoise(trainer, objective, loader, draws):
            zeros = {name: torch.zeros_like(v) for name, v in prediction.values.items()}
            columns = (prediction, trainer.in_physical_units(zeros, batch))
            for column, predicted in zip(totals, columns, strict=True):
                for name, mean in objective.metrics(predicted, batch).items():
                    column[name] = column.get(name, Ratio(0, 0)) + mean
    errors, of_zeros = ({name: mean.value for name, mean in c.items()} for c in totals)
    return errors, of_zeros


def _draw(seed: int, number: int, batch) -> torch.Generator:
    return Stream.EVALUATION.generator(seed, number)


def format_table(columns: dict[str, dict[str, float]]) -> str:
    """Format errors as text, a row for each."""
    rows = [f"{'error':<24}{'unit':<6}" + "".join(f"{name:>12}" for name in columns)]
    for name in columns["trained"]:
        cells = [f"{c[name]:12.4f}" if name in c else f"{'-':>12}" for c in columns.values()]
        rows.append(f"{name:<24}{find_metric(name).unit:<6}" + "".join(cells))
    return "\n".join(rows)
