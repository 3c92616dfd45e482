"""Check the schedule of a run: steps, warm-up, EMA, evaluations and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dens.runs.check.findings import Findings, counted

HORIZONS = 5  # a run of fewer EMA horizons keeps more than exp(-5) = 0.7 % of the first weights


def check_schedule(
    optim: Mapping[str, Any], structures: int, ranks: int, validates: bool, findings: Findings
) -> None:
    """Report the number of steps, and settings that do not fit it.

    Steps are counted as fairchem does, whose sampler keeps the last, smaller batch.

    Args:
        optim: this section of the config, with ``max_epochs``.
        structures: number of structures in the training set.
        ranks: number of ranks with different data.
        validates: whether there are validation data.
    """
    batch_size = optim.get("batch_size", 1) * optim.get("grad_accumulation_steps", 1)
    epoch = math.ceil(math.ceil(structures / ranks) / batch_size)
    total = epoch * optim["max_epochs"]
    warmup = (optim.get("scheduler_params") or {}).get("warmup_epochs")
    detail = (
        f"{epoch} steps an epoch ({structures} structures, {batch_size} on each of "
        f"{counted(ranks, 'rank')}), {total} in {counted(optim['max_epochs'], 'epoch')}"
    )
    if warmup is not None:
        detail += f", {int(warmup * epoch)} of warm-up"
    findings.ok("steps", detail)
    if batch_size * ranks > structures:
        repeated = " with some of them twice" if ranks > 1 and structures % ranks else ""
        findings.warn(
            "steps",
            f"a batch takes {batch_size * ranks} structures ({batch_size} x "
            f"{counted(ranks, 'rank')}), and there are {structures}: every step would see all of "
            f"them{repeated} (optim.batch_size)",
        )
    if warmup is not None:
        _check_warmup(warmup, epoch, total, findings)
    if optim.get("ema_decay"):
        _check_ema(optim["ema_decay"], total, findings)
    _check_intervals(optim, epoch, total, validates, findings)


def _check_warmup(warmup_epochs: float, epoch: int, total: int, findings: Findings) -> None:
    key, warmup = "optim.scheduler_params.warmup_epochs", int(warmup_epochs * epoch)
    if warmup < 1:
        findings.error(
            "steps",
            f"warmup_epochs must be at least one step, and an epoch has {epoch}: got "
            f"{warmup_epochs} ({key})",
        )
    elif warmup >= total:
        findings.warn(
            "steps",
            f"warm-up takes {warmup} steps and the run has {total}: the learning rate would never "
            f"come down ({key})",
        )


def _check_ema(decay: float, updates: int, findings: Findings) -> None:
    horizon = 1 / (1 - decay) if decay < 1 else math.inf
    if updates >= HORIZONS * horizon:
        findings.ok("EMA", f"averages the last {horizon:.0f} updates of {updates}")
        return
    shorter = max(0.0, 1 - 10 / updates) if updates else 0.0
    findings.warn(
        "EMA",
        f"ema_decay = {decay:g} averages over {horizon:.0f} updates and the run has {updates}: "
        f"validation and checkpoints use this average, {decay**updates:.0%} of which would still "
        f"be the untrained weights at the end; {shorter:.3g} would suit this run (optim.ema_decay)",
    )


def _check_intervals(
    optim: Mapping[str, Any], epoch: int, total: int, validates: bool, findings: Findings
) -> None:
    evaluated = optim.get("eval_every", epoch)
    saved = optim.get("checkpoint_every", evaluated)
    if not validates:
        findings.warn(
            "validation",
            "dataset.val.src is not given: nothing is validated and no best_checkpoint.pt written",
        )
    elif evaluated > total:
        findings.warn(
            "validation",
            f"every {evaluated} steps, and the run has {total}: it would never validate, nor "
            "write best_checkpoint.pt (optim.eval_every)",
        )
    if saved != -1 and saved > total:
        key = "checkpoint_every" if "checkpoint_every" in optim else "eval_every"
        findings.warn(
            "checkpoints",
            f"every {saved} steps, and the run has {total}: none would be written (optim.{key})",
        )
