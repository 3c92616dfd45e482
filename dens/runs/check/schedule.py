"""Check the schedule of a run: steps, warm-up, EMA, evaluations and checkpoints; resuming."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from dens.runs.check.findings import Findings, counted
from dens.settings import ConfigError

HORIZONS = 5  # a run of fewer EMA horizons keeps more than exp(-5) = 0.7 % of the first weights


class Sampling(NamedTuple):
    """Number of structures in the training set, and in one step on all ranks."""

    structures: int
    batch: int

    @classmethod
    def of(cls, optim: Mapping[str, Any], structures: int, ranks: int) -> Sampling:
        """Read the batch of an ``optim`` section; ``ranks`` have different data."""
        batch = optim.get("batch_size", 1) * optim.get("grad_accumulation_steps", 1)
        return cls(structures, batch * ranks)

    @property
    def steps(self) -> int:
        """Steps of an epoch: fairchem's sampler keeps the last, smaller batch."""
        return math.ceil(self.structures / self.batch)

    def __str__(self) -> str:
        return f"{self.steps} steps an epoch ({self.batch} of {self.structures} structures a step)"


def check_resume(
    step: int, epoch: float, before: Sampling | None, now: Sampling, max_epochs: int
) -> str | None:
    """Refuse to resume where an epoch has more or fewer steps than in the checkpoint.

    fairchem counts steps. Otherwise it would train structures twice, leave some out or find itself
    at the end; and the schedule of the checkpoint would not fit.

    Args:
        step: of the checkpoint; 0 for a start.
        epoch: of the checkpoint, with its fraction.
        before: sampling of the checkpoint, if it is known.
        now: sampling of this run.
        max_epochs: of this run.

    Returns:
        A notice where nothing is left to train, or only the sampling differs; else None.

    Raises:
        ConfigError: names both numbers of steps, and the settings that decide.
    """
    if not step or not epoch:
        return None
    steps = round(step / epoch)
    was = f"{steps} steps an epoch" if before is None else str(before)
    if steps != now.steps:
        product = f" = {before.batch}" if before else ""
        raise ConfigError(
            f"cannot resume at step {step}: the checkpoint has {was}, and this run has {now}; keep "
            f"the data, and batch_size x grad_accumulation_steps x ranks{product}, or start afresh "
            "from its weights: --checkpoint with that run's best_checkpoint.pt (optim.batch_size)"
        )
    if step >= max_epochs * steps:
        return (
            f"Nothing to train: the checkpoint, of step {step}, is at the end of max_epochs = "
            f"{max_epochs} (optim.max_epochs)"
        )
    if before not in (None, now):
        return f"The run goes on at step {step} with {now}; before it had {was}"
    return None


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
    epoch = Sampling.of(optim, structures, ranks).steps
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
        check_ema(optim["ema_decay"], total, "optim.ema_decay", "untrained", findings)
    _check_intervals(optim, epoch, total, validates, findings)


def _check_warmup(warmup_epochs: float, epoch: int, total: int, findings: Findings) -> None:
    key, warmup = "optim.scheduler_params.warmup_epochs", int(warmup_epochs * epoch)
    if warmup < 1:
        findings.error(
            "steps",
            f"warmup_epochs must be at least one step, and an epoch has {epoch}: got "
            f"{warmup_epochs} ({key})",
        )
    else:
        check_warmup_end(warmup, total, key, findings)


def check_warmup_end(warmup: float, total: float, key: str, findings: Findings) -> None:
    """Warn of a warm-up that lasts as long as the run, both in steps; ``key`` sets it."""
    if warmup >= total:
        findings.warn(
            "steps",
            f"warm-up takes {warmup:.0f} steps and the run has {total:.0f}: the learning rate "
            f"would never come down ({key})",
        )


def check_ema(decay: float, updates: int, key: str, first: str, findings: Findings) -> None:
    """Check that a moving average of weights forgets those it starts from.

    Args:
        updates: of the whole run.
        key: sets ``decay``.
        first: describes the weights at the start.
    """
    horizon = 1 / (1 - decay) if decay < 1 else math.inf
    if updates >= HORIZONS * horizon:
        findings.ok("EMA", f"averages the last {horizon:.0f} updates of {updates}")
        return
    shorter = f"{1 - 10 / updates:.3g}" if updates > 10 else "null"
    findings.warn(
        "EMA",
        f"ema_decay = {decay:g} averages over {horizon:.0f} updates and the run has {updates}: "
        f"validation and checkpoints use this average, {decay**updates:.0%} of which would still "
        f"be the {first} weights at the end; {shorter} would suit this run ({key})",
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
