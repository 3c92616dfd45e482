"""The part of a trainer that keeps the log and the watch."""

from __future__ import annotations

from typing import Any

from dens.fairchem1.train.logger import with_run_log
from dens.runs.log import RunLog
from dens.runs.monitor.training import TrainingMonitor


class MonitoredTraining:
    """Mixin that logs and monitors the training of a DeNS trainer."""

    watch: TrainingMonitor | None = None  # until there is something to train

    def load_logger(self) -> None:
        super().load_logger()
        if self.logger is not None and not isinstance(self.logger, RunLog):
            self.logger = with_run_log(self.logger, self.config)

    def load_extras(self) -> None:
        super().load_extras()
        self.watch = TrainingMonitor(self)

    def _compute_metrics(self, out, batch, evaluator, metrics=None) -> dict[str, Any]:
        metrics = super()._compute_metrics(out, batch, evaluator, metrics)
        if self.model.training and self.watch is not None:
            self.watch.step(batch)
        return metrics

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> dict[str, Any]:
        metrics = super().validate(split, disable_tqdm)
        if self.watch is not None:
            self.watch.after_validation(split)
        return metrics
