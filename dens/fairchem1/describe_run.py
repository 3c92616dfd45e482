"""Print the header of a run of fairchem-core 1.10 before it begins, and what is left at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import wandb
from fairchem.core.common import distutils
from fairchem.core.common.utils import new_trainer_context
from fairchem.core.trainers import base_trainer, ocp_trainer

from dens.patching import replaced
from dens.runs.log import RunLog
from dens.runs.terminal.heading import count_of, describe_device, describe_model, format_header
from dens.runs.terminal.output import RunOutput, show, terminal_output
from dens.runs.terminal.progress import Plan, follow

NOISE = (  # warnings of fairchem that tell a user nothing
    "^Overwritten config parameters from included configs",
    "^Disabled BalancedBatchSampler because num_replicas=1",
    "^Tensorboard logger is deprecated",
    "^log_summary for Tensorboard not supported",
    "^Model gradient logging to tensorboard not yet supported",
)
_DATA = {"train": "dataset", "val": "val_dataset", "test": "test_dataset"}  # keys of a trainer


@contextmanager
def output_of_run(config: Mapping[str, Any]) -> Iterator[RunOutput | None]:
    """Print for the user while a rank runs, and log the other lines to the run's log folder."""
    with terminal_output(log_folder(config), NOISE) as output:
        if output is None:
            yield None
            return
        with replaced(base_trainer, tqdm=follow), replaced(ocp_trainer, tqdm=follow):
            yield output


def log_folder(config: Mapping[str, Any]) -> Path | None:
    """Return the log folder that fairchem will make for a run, None with ``--debug``."""
    if config.get("is_debug", False):
        return None
    logger = config.get("logger", "wandb")
    name = logger if isinstance(logger, str) else logger["name"]
    return Path(config["run_dir"], "logs", name, config["timestamp_id"])


def announcing(output: RunOutput | None) -> Any:
    """Make a stand-in for fairchem's ``new_trainer_context``, which prints header and summary."""

    @contextmanager
    def announced(*, config: dict[str, Any]) -> Iterator[Any]:
        with new_trainer_context(config=config) as context:
            task, trainer = context.task, context.trainer
            if not isinstance(trainer, base_trainer.BaseTrainer):  # of a project, without parts
                yield context
                return
            run = task.run

            def run_announced() -> None:
                start = time.perf_counter()
                begin(trainer, config["mode"], output)
                run()
                end(trainer, time.perf_counter() - start)

            with replaced(task, run=run_announced):
                yield context

    return announced


def begin(trainer: Any, mode: str, output: RunOutput | None) -> None:
    """Print the header of a run whose trainer is loaded, and tell its log how long it will be."""
    log = trainer.logger
    if isinstance(log, RunLog) and mode == "train":
        steps = len(trainer.train_loader)
        metric = trainer.evaluation_metrics.get("primary_metric") or ""
        log.plan(Plan(steps * trainer.config["optim"]["max_epochs"], steps), metric)
    if distutils.is_master():
        show(format_header(_rows(trainer, mode), output))


def _rows(trainer: Any, mode: str) -> dict[str, str]:
    objective, model = getattr(trainer, "objective", None), trainer._unwrapped_model
    losses = [f"{name} {loss.get('coefficient', 1):g}" for name, loss in _losses(trainer)]
    method = objective.describe() if objective is not None else f"{type(trainer).__name__}, no DeNS"
    trains, command = objective is not None and mode == "train", trainer.config["cmd"]
    return {
        "method": method + f"; weights {', '.join(losses)}" * bool(losses),
        "corruption": objective.describe_phases(trainer.progress) if trains else "",
        "data": "; ".join(_describe_data(trainer)),
        "model": describe_model(model, list(getattr(model, "output_heads", ()))),
        "steps": _describe_length(trainer) if mode == "train" else "",
        "device": describe_device(trainer.device, distutils.get_world_size()),
        "run": command["timestamp_id"],
        "folder": "" if trainer.is_debug else command["checkpoint_dir"],
        "W&B": _wandb_address(),
    }


def _losses(trainer: Any) -> list[tuple[str, Mapping[str, Any]]]:
    return [pair for entry in trainer.config["loss_functions"] or () for pair in entry.items()]


def _describe_data(trainer: Any) -> Iterator[str]:
    for split, key in _DATA.items():
        dataset = getattr(trainer, f"{split}_dataset", None)
        if dataset is not None:
            source = (trainer.config.get(key) or {}).get("src", "")
            yield f"{split} {count_of(len(dataset), 'structure')}" + f" in {source}" * bool(source)


def _describe_length(trainer: Any) -> str:
    optim, steps = trainer.config["optim"], len(trainer.train_loader)
    whole = steps * optim["max_epochs"]
    start = f", from step {trainer.step:,}" if trainer.step else ""
    return (
        f"{whole:,}: {count_of(optim['max_epochs'], 'epoch')} of {steps:,}, "
        f"{count_of(optim.get('batch_size', 1), 'structure')} each and rank{start}"
    )


def _wandb_address() -> str:
    if wandb.run is None:
        return ""
    return wandb.run.url or f"offline, {wandb.run.settings.sync_dir}"


def end(trainer: Any, seconds: float) -> None:
    """Print the table of evaluations, the time and the files of a run that is complete."""
    if isinstance(trainer.logger, RunLog):
        trainer.logger.finish()
    if distutils.is_master():
        folder = (
            "" if trainer.is_debug else f"; checkpoints: {trainer.config['cmd']['checkpoint_dir']}"
        )
        show(f"done in {timedelta(seconds=round(seconds))}{folder}")
