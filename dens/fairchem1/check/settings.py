"""The settings of a config that can be judged without its data."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dens.denoising.config import DeNSConfig
from dens.fairchem1.config.inputs import check_inputs
from dens.fairchem1.config.rules import check_config, parse_dens
from dens.runs.check.findings import Findings
from dens.runs.check.memory import Footprint, in_words
from dens.settings import ConfigError

_NEEDED = ("num_workers", "lr_initial", "max_epochs")
_SCHEDULE = ("scheduler", "scheduler_params")  # needed by the trainers of EquiformerV2
# What fairchem 1.10 and dens read: others are ignored, and a misspelt one goes unnoticed for days.
_SECTIONS = (
    *("trainer", "task", "model", "outputs", "dataset", "optim", "loss_functions"),
    *("evaluation_metrics", "logger", "slurm", "hide_eval_progressbar"),
    # what the launcher sets
    *("mode", "identifier", "timestamp_id", "seed", "is_debug", "run_dir", "print_every", "amp"),
    *("checkpoint", "cpu", "submit", "summit", "world_size", "distributed_backend", "gp_gpus"),
)
_OPTIM = (
    *("batch_size", "eval_batch_size", "num_workers", "load_balancing", "load_balancing_on_error"),
    *("lr_initial", "optimizer", "optimizer_params", "weight_decay", "scheduler"),
    *("scheduler_params", "max_epochs", "clip_grad_norm", "ema_decay", "eval_every"),
    *("checkpoint_every", "dens", "amp_dtype", "grad_accumulation_steps", "max_skipped_steps"),
)


def check_settings(config: Mapping[str, Any], report: Findings) -> DeNSConfig | None:
    """Report what the config alone shows, and where its inputs are missing.

    Returns:
        The DeNS settings, where there are some.
    """
    optim = config.get("optim") or {}
    dens = None
    n_errors = report.count("error")
    with report.attempt("settings"):
        check_config(config)
    with report.attempt("settings"):
        _check_needed(config, optim)
    with report.attempt("data"):
        check_inputs(config)
    _check_spelling("", config, _SECTIONS, report)
    _check_spelling("optim.", optim, _OPTIM, report)
    if "dens" in optim or "use_denoising_pos" in optim:
        try:
            dens = parse_dens(optim)
        except ConfigError:
            dens = None  # said by check_config
    if report.count("error") == n_errors:
        report.ok("settings", _describe(config, dens))
    return dens


def _check_needed(config: Mapping[str, Any], optim: Mapping[str, Any]) -> None:
    names = _NEEDED
    if "equiformerv2" in str(config.get("trainer")) or "dens" in str(config.get("trainer")).lower():
        names += _SCHEDULE
    missing = [f"optim.{name} is missing" for name in names if name not in optim]
    if missing:
        raise ConfigError("\n".join(missing))


def _check_spelling(
    where: str, section: Mapping[str, Any], known: tuple[str, ...], report: Findings
) -> None:
    for key in section:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if key not in known and close:
            report.warn("settings", f"{where}{key} is not read: did you mean {where}{close[0]}?")


def _describe(config: Mapping[str, Any], dens: DeNSConfig | None) -> str:
    name = config.get("trainer", "ocp")
    if dens is None:
        return f"trainer {name}, no DeNS"
    sigmas = " to ".join(f"{sigma:g}" for sigma in dict.fromkeys((dens.sigmas[0], dens.sigmas[-1])))
    ratio = "all" if dens.corrupt_ratio is None else f"{dens.corrupt_ratio:.0%}"
    return f"trainer {name}; DeNS with prob {dens.prob:g}, sigma {sigmas} Å on {ratio} of the atoms"


def check_disk(run_dir: str | Path, footprint: Footprint, report: Findings) -> None:
    """Report whether checkpoints can be written to the run's folder."""
    folder = Path(run_dir).resolve()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        report.error("disk", f"{folder} is not writable (--run-dir)")
        return
    free, needed = shutil.disk_usage(folder).free, 3 * footprint.checkpoint
    detail = f"a checkpoint takes about {in_words(footprint.checkpoint)}, {in_words(free)} are free"
    if free < needed:  # the last one, the best one, and the one being written
        report.warn("disk", f"{detail} in {folder}: too little for three of them (--run-dir)")
    else:
        report.ok("disk", detail)
