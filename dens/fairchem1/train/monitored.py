"""Mixin that gives a trainer its log and its monitor."""

from __future__ import annotations

from typing import Any

from dens.fairchem1.train.logger import with_run_log
from dens.runs.log import RunLog
from dens.runs.monitor.training import TrainingMonitor


class MonitoredTraining:
    """Mixin that logs and monitors the training of a DeNS trainer.

    Imports nothing of fairchem, but overrides methods of its trainers.
    """

    monitor: TrainingMonitor | None = None  # until data and model are loaded

    def load_logger(self) -> None:
        super().load_logger()
        if self.logger is not None and not isinstance(self.logger, RunLog):
            self.logger = with_run_log(self.logger, self.config)

    def load_extras(self) -> None:
        super().load_extras()
        self.monitor = TrainingMonitor(self)

    def _compute_metrics(self, out, batch, evaluator, metrics=None) -> dict[str, Any]:
        metrics = super()._compute_metrics(out, batch, evaluator, metrics)
        if self.model.training and self.monitor is not None:
            self.monitor.step(batch)
        return metrics

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> dict[str, Any]:
        metrics = super().validate(split, disable_tqdm)
        if self.monitor is not None:
            self.monitor.after_validation(split)
        return metrics
