"""S2EF and denoising errors of a checkpoint, beside those of the untrained model and of zeros."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
import torch
from fairchem.core.common import distutils
from fairchem.core.common.utils import new_trainer_context

from dens.denoising.config import corrupt_all
from dens.denoising.metrics import add
from dens.fairchem1.launch import parse_args, read_config
from dens.metrics import Ratio
from dens.random import Stream
from dens.runs.monitor.denoise import best_weights, denoise
from dens.settings import ConfigError

_UNITS = {
    "energy_mae": "eV",
    "forces_mae": "eV/Å",
    "denoising_pos_mae": "Å",
    "denoising_forces_mae": "eV/Å",
    "denoising_energy_mae": "eV",
}


def evaluate_command(
    config_path: Path, checkpoint: Path, *, split: str = "val", overrides: Iterable[str] = ()
) -> None:
    """Print the table of :func:`evaluate` for a config and a checkpoint of it.

    Raises:
        ConfigError: no such checkpoint; a split that the config has not.
    """
    if not checkpoint.is_file():
        raise ConfigError(f"--checkpoint {checkpoint} does not exist")
    argv = ["--config-yml", str(config_path), "--mode", "validate", "--debug"]
    config = read_config(*parse_args([*argv, "--checkpoint", str(checkpoint), *overrides]))
    with new_trainer_context(config=config) as context:
        errors = evaluate(context.trainer, checkpoint, split)
        if distutils.is_master():
            click.echo(format_table(errors))


def evaluate(trainer, checkpoint: Path, split: str = "val") -> dict[str, dict[str, float]]:
    """Errors of zeros, of the trainer's present weights and of a checkpoint's EMA weights.

    Returns:
        For ``"zeros"``, ``"untrained"`` and ``"trained"``: errors by name, in eV, eV/Å and Å.
        Denoising errors are those of the structures of the split, all of them corrupted once, with
        the same noise in every column.
    """
    loaders = {"val": trainer.val_loader, "test": trainer.test_loader}
    if loaders.get(split) is None:
        raise ConfigError(f"--split must be one of the config's val, test, got {split!r}")
    columns = {"zeros": {}, "untrained": {}, "trained": {}}
    for name in ("untrained", "trained"):
        if name == "trained":
            trainer.load_checkpoint(str(checkpoint))
        metrics = trainer.validate(split, disable_tqdm=True)
        columns[name] = {key: metrics[key]["metric"] for key in metrics if key in _UNITS}
        if getattr(trainer, "applies_dens", False) and trainer.dens.prob > 0:
            errors, columns["zeros"] = denoising_errors(trainer, loaders[split])
            columns[name].update(errors)
    return columns


def denoising_errors(trainer, loader) -> tuple[dict[str, float], dict[str, float]]:
    """Denoising errors on a loader's structures, each corrupted as ``optim.dens`` says.

    Args:
        trainer: a DeNS trainer; its EMA weights are used, where it has some.

    Returns:
        The model's errors, and those of predicting no noise, no force and the mean energy.
    """
    seed = trainer.config["cmd"]["seed"] or 0
    dens = corrupt_all(trainer.dens, loader.dataset[0])
    totals: tuple[dict[str, Ratio], ...] = ({}, {})
    with best_weights(trainer):
        passes = denoise(trainer, loader, dens, lambda i, _: Stream.EVALUATION.generator(seed, i))
        for batch, fields, out in passes:
            zeros = {name: torch.zeros_like(value) for name, value in out.items()}
            for column, predicted in zip(totals, (out, zeros), strict=True):
                for name, mean in trainer._denoising_metrics(predicted, batch, fields).items():
                    column[name] = add(column.get(name, Ratio(0, 0)), mean)
    errors, of_zeros = ({k: total / n for k, (total, n) in c.items()} for c in totals)
    return errors, of_zeros


def format_table(columns: dict[str, dict[str, float]]) -> str:
    """The errors as text, one row for each."""
    rows = [f"{'error':<24}{'unit':<6}" + "".join(f"{name:>12}" for name in columns)]
    for name in columns["trained"]:
        cells = [f"{c[name]:12.4f}" if name in c else f"{'-':>12}" for c in columns.values()]
        rows.append(f"{name:<24}{_UNITS.get(name, 'Å'):<6}" + "".join(cells))
    return "\n".join(rows)
