"""Measurements of a unit's training: step metrics, gradient shares, denoising validation, logs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fairchem.core.common import distutils, gp_utils
from omegaconf import OmegaConf
from torch import Tensor

from dens.fairchem2.inference_checkpoint import BestCheckpoint
from dens.fairchem2.task_labels import Labels
from dens.fairchem2.train.describe_unit import announce, announce_end
from dens.fairchem2.train.host import ListedRecords, UnitHost
from dens.fairchem2.train.logger import UnitLog
from dens.fairchem2.train.step_metrics import step_metrics
from dens.fairchem2.train.steps import ReproducibleSteps, data_rank, data_ranks
from dens.metrics import FORCES_MAE
from dens.objective import Objective, Progress
from dens.runs.monitor.settings import MonitorSettings, parse_monitor
from dens.runs.monitor.training import TrainingMonitor
from dens.runs.monitor.validation import Schedule
from dens.settings import ConfigError, unknown_value

_SECTION = "runner.train_eval_unit"


class MonitoredSteps(ReproducibleSteps):
    """Mixin that measures and logs a unit's training with an objective.

    Every ``print_every`` steps the errors of clean and of corrupted structures and the terms of the
    loss are measured; denoising is, at each evaluation. The weights that are best in validation are
    kept in ``checkpoints/best_inference_ckpt.pt``.

    Args:
        watch: the settings of :class:`~dens.runs.monitor.settings.MonitorSettings`.
        primary_metric: which decides, such as ``forces_mae`` or ``energy_per_atom_mae``, means over
            data sets, or ``loss``; null: the first of those for forces.

    Raises:
        ConfigError: wrong settings, or a metric that no task has.
    """

    objective: Objective
    labels: Labels
    logger: UnitLog | None
    print_every: int
    save_inference_ckpt: bool
    host: UnitHost
    watch: MonitorSettings
    best: BestCheckpoint
    announces = True  # prints a header; not where a single step is tried
    _dens_monitor: TrainingMonitor | None = None  # from the start of training on
    _dens_start: float  # of training, by time.perf_counter

    def __init__(
        self,
        *,
        watch: Mapping[str, Any] | None = None,
        primary_metric: str | None = None,
        **kwargs: Any,
    ) -> None:
        watch = OmegaConf.to_container(watch) if OmegaConf.is_config(watch) else watch
        settings = parse_monitor({"watch": watch}, _SECTION)
        metric = _primary_metric(primary_metric, kwargs["tasks"])
        super().__init__(**kwargs)
        self.watch, self.host = settings, UnitHost(self)
        self.best = BestCheckpoint(metric)

    def start_log(self, method: str) -> None:
        """Begin the log of the run, on the master.

        Args:
            method: what the run is called in comparisons.
        """
        job = self.job_config.metadata
        if not distutils.is_master() or job.array_job_num != 0:
            return
        config = OmegaConf.load(job.config_path) if os.path.exists(job.config_path) else {}
        config = OmegaConf.to_container(config) if config else {}
        self.logger = UnitLog(self.logger, job.log_dir, config, self.labels.tasks, method)

    # ---- training ---------------------------------------------------------------------------

    def on_train_start(self, state: Any) -> None:
        super().on_train_start(state)
        self._dens_start = time.perf_counter()
        if self.announces:
            announce(self, state)
        evaluation = getattr(state, "eval_state", None)
        if evaluation is None:
            return
        loader = evaluation.dataloader
        every = evaluation.evaluate_every_n_steps or len(state.train_state.dataloader)
        schedule = Schedule(
            seed=self.seed,
            rank=data_rank(),
            ranks=data_ranks(),
            batch_size=max(len(loader.dataset) // (len(loader) * data_ranks()), 1),
            evaluate_every=every,
        )
        self.host.stock_collate = loader.collate_fn
        backbone = getattr(self.model, "module", self.model).backbone
        self._dens_monitor = TrainingMonitor(self.host, self.watch, schedule, backbone)

    def progress_of(self, state: Any) -> Progress:
        """Return how far training has come, the present step included."""
        phase, done = state.train_state, self.train_progress
        steps = len(phase.dataloader)
        epoch = done.num_epochs_completed + min((done.num_steps_completed_in_epoch + 1) / steps, 1)
        epochs = phase.max_epochs or (phase.max_steps or steps) / steps
        return Progress(epoch, epochs, len(phase.dataloader.dataset))

    def begin_step(self, state: Any) -> Progress:
        """Note and return how far training has come, the present step included."""
        self.host.progress = self.progress_of(state)
        self.host.step = self.train_progress.num_steps_completed
        if self.logger is not None:
            self.logger.step, self.logger.epoch = self.host.step, self.host.progress.epoch
        return self.host.progress

    def step_terms(self) -> dict[str, Tensor]:
        """Return the weighted terms of the present step's loss on this rank, by name."""
        raise NotImplementedError

    def after_loss(self) -> None:
        """Measure the terms' shares of the gradient, if due; the graph of the loss is there."""
        if self._dens_monitor is not None:
            self._dens_monitor.gradients(self.step_terms())

    def end_step(self, batch: Any) -> None:
        """Measure and log a finished step, if due."""
        counts = not gp_utils.initialized() or gp_utils.get_gp_rank() == 0
        if self._dens_monitor is not None:
            self._dens_monitor.step(batch, counts=counts)
        if self.host.step % self.print_every or self._dens_skipped:
            return
        prediction = self.host.in_physical_units(self.step_outputs(), batch)
        terms = {name: term.detach() for name, term in self.step_terms().items()}
        found = step_metrics(prediction, batch, self.objective, terms)
        found |= self.objective.schedule(self.host.progress)
        found["skipped_steps"] = self.skipped_steps
        self.host.log(found, "train")
        if distutils.is_master():
            shown = ", ".join(f"{name}: {value:.4g}" for name, value in found.items())
            logging.info(f"step {self.host.step}: {shown}")

    def on_train_end(self, state: Any) -> None:
        super().on_train_end(state)
        announce_end(self, time.perf_counter() - self._dens_start)

    # ---- evaluation -------------------------------------------------------------------------

    def on_eval_epoch_end(self, state: Any) -> None:
        super().on_eval_epoch_end(state)
        if self.logger is not None and self.save_inference_ckpt:
            self.best.update(self, self.logger.validated)
        if self._dens_monitor is not None:
            records = ListedRecords(state.eval_state.dataloader.dataset)
            self._dens_monitor.after_validation("val", records)
        if self.logger is not None:
            self.logger.run.evaluated()

    # ---- state ------------------------------------------------------------------------------

    def dens_state(self) -> dict[str, Any]:
        return {**super().dens_state(), "best": self.best.value}

    def load_dens_state(self, state: Mapping[str, Any]) -> None:
        super().load_dens_state(state)
        self.best.value = state["best"]


def _primary_metric(name: str | None, tasks: Sequence[Any]) -> str:
    """Choose the metric that decides the best checkpoint, as the log names it.

    Raises:
        ConfigError: no task has the metric.
    """
    known = dict.fromkeys(f"{t.property}_{metric}" for t in tasks for metric in t.metrics)
    if name is None:
        of_forces = [metric for metric in known if metric.startswith("forces_")]
        return next(iter([FORCES_MAE] * (FORCES_MAE in known) + of_forces + [*known, "loss"]))
    if name not in (*known, "loss"):
        raise ConfigError(unknown_value(name, f"{_SECTION}.primary_metric", [*known, "loss"]))
    return name
