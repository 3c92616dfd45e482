"""``dens check``: everything that can fail in the first hour of a run, in seconds.

Every check is made, whatever the others say, unless it needs what they found missing. Nothing is
left behind: the trainer is built in a temporary folder, without logger, and thrown away.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from fairchem.core.common.utils import build_config

from dens.denoising.config import DeNSConfig
from dens.fairchem1.check.data import (
    Split,
    check_apart,
    check_elements,
    check_labels,
    check_sizes,
    open_splits,
)
from dens.fairchem1.check.scales import check_scales
from dens.fairchem1.check.settings import check_disk, check_settings
from dens.fairchem1.check.step import built, choose_records, evaluation_step, sizes_of, train_step
from dens.fairchem1.config.read import as_config_error, split_settings
from dens.fairchem1.launch import parse_args
from dens.runs.check.corruption import check_denoising
from dens.runs.check.findings import Report
from dens.runs.check.memory import check_memory
from dens.runs.check.schedule import check_schedule

SAMPLE = 300  # structures of each split that are read, by default
_MAX_ELEMENTS = 90  # fairchem's default of max_num_elements


def check_command(
    config_path: Path,
    *,
    num_gpus: int = 1,
    checkpoint: Path | None = None,
    sample: int = SAMPLE,
    overrides: Sequence[str] = (),
) -> bool:
    """Check a training config and print the findings.

    Args:
        num_gpus: ranks of the run that is meant; the check itself takes one.
        checkpoint: with which the run is meant to start.
        sample: structures of each split to read.
        overrides: of the config, or options of the launcher.

    Returns:
        Whether there are no errors.

    Raises:
        ConfigError: the config cannot be read, or an override is none.
    """
    argv = ["--config-yml", str(config_path), "--num-gpus", str(num_gpus)]
    argv += ["--checkpoint", str(checkpoint)] if checkpoint else []
    args, changes = parse_args([*argv, *overrides])
    args.cpu |= not torch.cuda.is_available()
    started = time.perf_counter()
    with _silence():
        with as_config_error(config_path):
            config = build_config(args, changes)
        report = Report(show=lambda finding: click.echo(finding.styled()))
        examine(config, report, sample)
    click.echo(f"{report.summary()} ({time.perf_counter() - started:.1f} s)")
    return not report.count("error")


@contextmanager
def _silence() -> Iterator[None]:
    """Keep fairchem's log and Python's warnings out of the list of findings."""
    root, level = logging.getLogger(), logging.getLogger().level
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        root.setLevel(level)


def examine(config: Mapping[str, Any], report: Report, sample: int = SAMPLE) -> None:
    """Make all checks of a config that `dens.fairchem1.launch` could run.

    Args:
        config: with the keys that fairchem's ``build_config`` adds.
        sample: structures of each split to read.
    """
    config, dens = check_settings(config, report)
    usable = not report.count("error")
    if "datasets" in config:
        report.warn("data", "fairchem's multitask layout (datasets) is not looked into")
        return
    splits: dict[str, Split] = {}
    with report.attempt("data"):
        splits = open_splits(split_settings(config.get("dataset")), sample, report)
    _check_data(config, splits, dens, report)
    _check_run(config, splits, report)
    if usable:
        _check_step(config, splits, sample, report)
    else:
        report.warn("step", "not tried: the errors above come first")


def _check_data(
    config: Mapping[str, Any], splits: dict[str, Split], dens: DeNSConfig | None, report: Report
) -> None:
    outputs = config.get("outputs") or {}
    targets = [name for term in config.get("loss_functions") or [] for name in term]
    levels = {name: (outputs.get(name) or {}).get("level", "system") for name in targets}
    levels = levels or {"energy": "system", "forces": "atom"}  # of the older layout
    for split in splits.values():
        with report.attempt("labels"):
            check_labels(split, levels, report)
    model = config.get("model") or {}
    backbone = model.get("backbone", model)
    with report.attempt("elements"):
        check_elements(splits, backbone.get("max_num_elements", _MAX_ELEMENTS), report)
    with report.attempt("data"):
        check_apart(splits, report)
    if "train" not in splits:
        return
    train = splits["train"]
    with report.attempt("data"):
        check_sizes(train, config.get("optim") or {}, config["world_size"], report)
    with report.attempt("normaliser"):
        check_scales(train, config["seed"] or 0, dens is not None, report)
    if dens is not None:
        with report.attempt("denoising"):
            check_denoising(dens, list(train.sound.values()), report)


def _check_run(config: Mapping[str, Any], splits: dict[str, Split], report: Report) -> None:
    optim = config.get("optim") or {}
    if "train" not in splits or "max_epochs" not in optim:
        return
    ranks = config["world_size"] // (config["gp_gpus"] or 1)
    with report.attempt("steps"):
        validates = "val" in split_settings(config["dataset"])
        check_schedule(optim, len(splits["train"].dataset), ranks, validates, report)


def _check_step(
    config: Mapping[str, Any], splits: dict[str, Split], sample: int, report: Report
) -> None:
    train, val = splits.get("train"), splits.get("val")
    if train is None or not train.sound:
        report.warn("step", "not tried: there is no structure to take it on")
        return
    batch_size = config["optim"].get("batch_size", 1)
    with report.attempt("trainer"), built(config, sample) as trainer:
        records = choose_records(train, batch_size, trainer.device.type == "cpu")
        with report.attempt("step"):
            footprint = train_step(trainer, records, report)
            check_memory(footprint, sizes_of(train), batch_size, trainer.device, report)
            check_disk(config["run_dir"], footprint, report)
        if val is not None and val.sound:
            with report.attempt("validation"):
                smallest = min(val.sound.values(), key=lambda data: int(data.natoms))
                evaluation_step(trainer, [smallest], report)
