"""Print the header of a run of fairchem-core 2 before it begins, and its table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import wandb
from fairchem.core.common import distutils

from dens.runs.terminal.heading import count_of, describe_device, describe_model, format_header
from dens.runs.terminal.output import active_output, show
from dens.runs.terminal.progress import Plan


def announce(unit: Any, state: Any) -> None:
    """Print the header of a run that is about to train, and tell its log how long it will be."""
    phase = state.train_state
    of_epoch = len(phase.dataloader)
    steps = phase.max_steps or (phase.max_epochs or 1) * of_epoch
    if unit.logger is not None:
        unit.logger.run.plan(Plan(steps, of_epoch), unit.best.metric)
    if distutils.is_master():
        show(format_header(_rows(unit, state, steps), active_output()))


def _rows(unit: Any, state: Any, steps: int) -> dict[str, str]:
    model, job = getattr(unit.model, "module", unit.model), unit.job_config
    weights = [f"{task.name} {task.loss_fn.coefficient:g}" for task in unit.labels.tasks]
    return {
        "method": f"{unit.objective.describe()}; weights {', '.join(weights)}",
        "corruption": unit.objective.describe_phases(unit.progress_of(state)),
        "data": "; ".join(_describe_data(state)),
        "model": describe_model(model, list(getattr(model, "output_heads", ()))),
        "steps": _describe_length(unit, state, steps),
        "device": describe_device(
            distutils.get_device_for_local_rank(), distutils.get_world_size()
        ),
        "run": job.timestamp_id,
        "folder": job.metadata.checkpoint_dir,
        "W&B": (wandb.run.url or "offline") if wandb.run is not None else "",
    }


def _describe_data(state: Any) -> Iterator[str]:
    for split, phase in (("train", state.train_state), ("val", getattr(state, "eval_state", None))):
        if phase is not None:
            dataset = phase.dataloader.dataset
            yield f"{split} {count_of(len(dataset), 'structure')}"


def _describe_length(unit: Any, state: Any, steps: int) -> str:
    of_epoch, done = len(state.train_state.dataloader), unit.train_progress.num_steps_completed
    start = f", from step {done:,}" if done else ""
    return f"{steps:,}: {steps / of_epoch:.4g} epochs of {of_epoch:,}{start}"


def announce_end(unit: Any, seconds: float) -> None:
    """Print the table of evaluations, the time and the checkpoints of a run that is complete."""
    if unit.logger is not None:
        unit.logger.run.finish()
    if distutils.is_master():
        folder = unit.job_config.metadata.checkpoint_dir
        show(f"done in {timedelta(seconds=round(seconds))}; checkpoints: {folder}")
