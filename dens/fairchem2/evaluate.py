"""``dens evaluate`` with fairchem-core 2: errors of a checkpoint and of an untrained model."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import hydra
import torch

from dens.denoising.metrics import NOISE_MAE
from dens.fairchem2.check.compose import compose
from dens.fairchem2.check.one_step import build_unit, on_cpu, process_group
from dens.fairchem2.launch import NOISE
from dens.fairchem2.train.host import ListedRecords
from dens.metrics import at_level, find_metric
from dens.runs.monitor.validation import DenoisingValidation, Schedule
from dens.runs.terminal.output import terminal_output
from dens.settings import ConfigError

_DENOISED = 200  # structures of the validation set


def evaluate_command(
    config_path: Path, checkpoint: Path, *, split: str = "val", overrides: Sequence[str] = ()
) -> None:
    """Print a table of the errors of zeros, of the untrained model and of a checkpoint.

    Args:
        config_path: the training config.
        checkpoint: the folder of a step, such as ``RUN/checkpoints/final``.
        split: ``val``: the only one that these configs have.
        overrides: as of fairchem's command line.

    Raises:
        ConfigError: another split, or no checkpoint to resume from.
    """
    if split != "val":
        raise ConfigError(f"configs of fairchem-core 2 have no data for --split {split}: only val")
    if not (Path(checkpoint) / ".metadata").is_file():
        raise ConfigError(
            f"--checkpoint must be the folder of a step, such as RUN/checkpoints/final, got "
            f"{checkpoint}"
        )
    with terminal_output(noise=NOISE), tempfile.TemporaryDirectory() as folder:
        own = [f"++job.run_dir={folder}", "++job.debug=True", "++job.logger=null"]
        config = compose(config_path, [*overrides, *own])
        with process_group(on_cpu(config)):
            click.echo(_table(evaluate(config, checkpoint)))


def evaluate(config: Any, checkpoint: Path) -> dict[str, dict[str, float]]:
    """Compute the errors of predicting zeros, of an untrained model and of a checkpoint.

    Returns:
        For ``zeros`` (the noise alone), ``untrained`` and ``trained``: errors by name.
    """
    torch.manual_seed(config.job.seed)
    unit = build_unit(config)
    loader = hydra.utils.instantiate(config.runner.eval_dataloader)
    columns: dict[str, dict[str, float]] = {"zeros": {}, "untrained": errors_of(unit, loader)}
    unit.load_scheduler(1)  # part of the state
    unit._execute_load_state(str(checkpoint))  # at once: load_state waits for training
    columns["trained"] = errors_of(unit, loader)
    for sigma in _sigmas(unit):
        # of a component of the noise, the mean absolute value
        columns["zeros"][at_level(NOISE_MAE, sigma)] = sigma * math.sqrt(2 / math.pi)
    return columns


def errors_of(unit: Any, loader: Any) -> dict[str, float]:
    """Evaluate a unit on a loader's structures, as training does; then denoise some of them."""
    evaluation, state = (
        unit.eval_unit,
        SimpleNamespace(eval_state=SimpleNamespace(dataloader=loader)),
    )
    with torch.no_grad():
        evaluation.on_eval_epoch_start(state)
        for batch in loader:
            evaluation.eval_step(state, batch)
        found = evaluation.on_eval_epoch_end(state)
    errors = {name.removeprefix("val/"): float(v) for name, v in found.items() if "," in name}
    return errors | dict(_denoised(unit, loader))


def _sigmas(unit: Any) -> Sequence[float]:
    return unit.watch.sigmas(unit.objective) if hasattr(unit, "objective") else ()


def _denoised(unit: Any, loader: Any) -> Iterator[tuple[str, float]]:
    """Yield the denoising errors, with the same noise for every model."""
    if not hasattr(unit, "objective"):
        return
    unit.host.stock_collate = loader.collate_fn
    watch = unit.watch.model_copy(update={"denoising_structures": _DENOISED})
    schedule = Schedule(seed=unit.seed, rank=0, ranks=1, batch_size=8, evaluate_every=None)
    found, _ = DenoisingValidation(unit.host, watch, schedule)(ListedRecords(loader.dataset))
    yield from found.items()


def _table(columns: Mapping[str, Mapping[str, float]]) -> str:
    width = max(map(len, columns["trained"])) + 2
    rows = [f"{'error':<{width}}{'unit':<6}" + "".join(f"{name:>12}" for name in columns)]
    for name in columns["trained"]:
        cells = [f"{c[name]:12.4f}" if name in c else f"{'-':>12}" for c in columns.values()]
        rows.append(f"{name:<{width}}{_unit(name):<6}" + "".join(cells))
    return "\n".join(rows)


def _unit(name: str) -> str:
    """Return the unit of a metric of ours, or of fairchem's, such as ``oc20.val,forces,mae``."""
    _, task, metric = [*name.split(","), "", ""][:3]
    if not metric:
        return find_metric(name).unit
    per_component = "eV/Å" if "forces" in task else "eV/Å³" if "stress" in task else "eV"
    return per_component if "mae" in metric else ""
