"""What a run would do, step by step, from its settings and the size of its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dens.runs.check.findings import Report, counted

HORIZONS = 5  # a run of fewer EMA horizons keeps more than exp(-5) = 0.7 % of the first weights


@dataclass(frozen=True)
class Schedule:
    """The steps of a run: of one epoch, of all, and those of warm-up (None: no such setting)."""

    epoch: int
    total: int
    warmup: int | None


def plan(optim: Mapping[str, Any], structures: int, ranks: int) -> Schedule:
    """The steps that fairchem's sampler, which keeps the last, smaller batch, and schedules make.

    Args:
        optim: the section of the config, with ``max_epochs``.
        structures: of the training set.
        ranks: that get different data.
    """
    epoch = math.ceil(math.ceil(structures / ranks) / _structures_per_step(optim))
    warmup = (optim.get("scheduler_params") or {}).get("warmup_epochs")
    return Schedule(
        epoch=epoch,
        total=epoch * optim["max_epochs"],
        warmup=None if warmup is None else int(warmup * epoch),
    )


def _structures_per_step(optim: Mapping[str, Any]) -> int:
    """On each rank."""
    return optim.get("batch_size", 1) * optim.get("grad_accumulation_steps", 1)


def check_schedule(
    optim: Mapping[str, Any], structures: int, ranks: int, validates: bool, report: Report
) -> None:
    """Report the numbers of steps, and what does not fit them.

    Args:
        optim, structures, ranks: see `plan`.
        validates: whether there are validation data.
    """
    steps = plan(optim, structures, ranks)
    batch_size = _structures_per_step(optim)
    detail = (
        f"{steps.epoch} steps an epoch ({structures} structures, {batch_size} on each of "
        f"{counted(ranks, 'rank')}), {steps.total} in {counted(optim['max_epochs'], 'epoch')}"
    )
    if steps.warmup is not None:
        detail += f", {steps.warmup} of warm-up"
    report.ok("steps", detail)
    _check_batch(batch_size, structures, ranks, report)
    _check_warmup(optim, steps, report)
    _check_ema(optim.get("ema_decay"), steps.total, report)
    _check_intervals(optim, steps, validates, report)


def _check_batch(batch_size: int, structures: int, ranks: int, report: Report) -> None:
    if batch_size * ranks > structures:
        repeated = " with some of them twice" if ranks > 1 and structures % ranks else ""
        report.warn(
            "steps",
            f"a batch takes {batch_size * ranks} structures ({batch_size} x "
            f"{counted(ranks, 'rank')}), and there are {structures}: every step would see all of "
            f"them{repeated} (optim.batch_size)",
        )


def _check_warmup(optim: Mapping[str, Any], steps: Schedule, report: Report) -> None:
    key = "optim.scheduler_params.warmup_epochs"
    if steps.warmup is None:
        return
    given = optim["scheduler_params"]["warmup_epochs"]
    if steps.warmup < 1:
        report.error(
            "steps",
            f"warmup_epochs must be at least one step, and an epoch has {steps.epoch}: got {given} "
            f"({key})",
        )
    elif steps.warmup >= steps.total:
        report.warn(
            "steps",
            f"warm-up takes {steps.warmup} steps and the run has {steps.total}: the learning rate "
            f"would never come down ({key})",
        )


def _check_ema(decay: float | None, updates: int, report: Report) -> None:
    if not decay:
        return
    horizon = 1 / (1 - decay) if decay < 1 else math.inf
    kept = decay**updates
    if updates >= HORIZONS * horizon:
        report.ok("EMA", f"averages the last {horizon:.0f} updates of {updates}")
        return
    shorter = max(0.0, 1 - 10 / updates) if updates else 0.0
    report.warn(
        "EMA",
        f"ema_decay = {decay:g} averages over {horizon:.0f} updates and the run has {updates}: "
        f"validation and checkpoints use this average, {kept:.0%} of which would still be the "
        f"untrained weights at the end; {shorter:.3g} would suit this run (optim.ema_decay)",
    )


def _check_intervals(
    optim: Mapping[str, Any], steps: Schedule, validates: bool, report: Report
) -> None:
    evaluated = optim.get("eval_every", steps.epoch)
    saved = optim.get("checkpoint_every", evaluated)
    if not validates:
        report.warn(
            "validation",
            "dataset.val.src is not given: nothing is validated and no best_checkpoint.pt written",
        )
    elif evaluated > steps.total:
        report.warn(
            "validation",
            f"every {evaluated} steps, and the run has {steps.total}: it would never validate, nor "
            "write best_checkpoint.pt (optim.eval_every)",
        )
    if saved != -1 and saved > steps.total:
        key = "checkpoint_every" if "checkpoint_every" in optim else "eval_every"
        report.warn(
            "checkpoints",
            f"every {saved} steps, and the run has {steps.total}: none would be written "
            f"(optim.{key})",
        )
