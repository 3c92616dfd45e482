"""Check the length of a fairchem-core 2 run: steps, warm-up, moving average, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dens.runs.check.findings import Findings, counted
from dens.runs.check.schedule import check_ema, check_warmup_end

_UNIT = "runner.train_eval_unit"


def check_length(
    runner: Mapping[str, Any], epoch: int, ranks: int, findings: Findings
) -> float | None:
    """Report the number of steps, and settings that do not fit it.

    Args:
        runner: its section, in plain values.
        epoch: steps of an epoch.
        ranks: with data of their own.

    Returns:
        The number of epochs, or None if the length is not given.
    """
    steps, epochs = runner.get("max_steps"), runner.get("max_epochs")
    if steps is None and epochs is None:
        findings.error("steps", "expected runner.max_steps or runner.max_epochs, got neither")
        return None
    total = min(steps or math.inf, epoch * (epochs or math.inf))
    unit = runner["train_eval_unit"]
    detail = f"{epoch} steps an epoch on {counted(ranks, 'rank')}, {total:.0f} in all"
    findings.ok("steps", f"{detail}, {total / epoch:.3g} epochs")
    _check_scheduler(unit.get("cosine_lr_scheduler_fn") or {}, epoch, total, findings)
    if (decay := unit.get("ema_decay", 0.999)) is not None:
        check_ema(decay, int(total), f"{_UNIT}.ema_decay", "first", findings)
    _check_intervals(runner, total, findings)
    return total / epoch


def _check_scheduler(
    scheduler: Mapping[str, Any], epoch: int, total: float, findings: Findings
) -> None:
    where = f"{_UNIT}.cosine_lr_scheduler_fn"
    if scheduler and (scheduler.get("steps") is None) == (scheduler.get("epochs") is None):
        got = "both" if scheduler.get("steps") else "neither"
        findings.error("steps", f"expected {where}.steps or .epochs, got {got}")
        return
    own = scheduler.get("steps") or (scheduler.get("epochs") or 0) * epoch
    if own and not math.isclose(own, total, rel_tol=0.01):
        end = "is not finished" if own > total else "stays at its end"
        findings.warn(
            "steps",
            f"the learning rate is scheduled for {own} steps and the run has {total:.0f}: "
            f"the schedule {end} ({where})",
        )
    warmup = (scheduler.get("warmup_epochs") or 0) * epoch
    check_warmup_end(warmup, total, f"{where}.warmup_epochs", findings)


def _check_intervals(runner: Mapping[str, Any], total: float, findings: Findings) -> None:
    every = runner.get("evaluate_every_n_steps")
    if every and every > total and runner.get("eval_dataloader"):
        findings.warn(
            "steps",
            f"validation comes every {every} steps and the run has {total:.0f}: there is one at "
            "the end of each epoch only (runner.evaluate_every_n_steps)",
        )
    callbacks = [c for c in runner.get("callbacks") or () if isinstance(c, Mapping)]
    saving = [c for c in callbacks if "TrainCheckpointCallback" in str(c.get("_target_"))]
    if not saving or not saving[0].get("checkpoint_every_n_steps"):
        findings.warn(
            "checkpoints",
            "no checkpoint is written, not even the last one: fairchem writes them where a "
            "TrainCheckpointCallback has checkpoint_every_n_steps (runner.callbacks)",
        )
