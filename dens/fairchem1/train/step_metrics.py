"""Metrics of a training step, over all ranks, with ordinary and corrupted structures apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch

from dens.data.batches import select_structures
from dens.fairchem1.config.rules import metric_names
from dens.metrics import LOSS_TERM, Ratio, find_metric
from dens.objective import Objective
from dens.patching import replaced
from dens.ranks import sum_over_ranks

_NONE_YET = -1.0  # fairchem's best metric before the first evaluation, if higher is better


class TrainingMetrics:
    """Mixin that measures the training steps of an objective; validation is fairchem's.

    It stands before :class:`~dens.fairchem1.train.steps.ReproducibleSteps` among the bases. Imports
    nothing of fairchem, but overrides a method of its trainers.
    """

    objective: Objective
    _validating = False
    _loss_values: dict[str, float]  # the loss terms of the present step, set by the trainer

    def _compute_metrics(self, out, batch, evaluator, metrics=None) -> dict:
        """Compute fairchem's metrics on ordinary structures, the objective's on corrupted ones."""
        if not self.model.training:
            return super()._compute_metrics(out, batch, evaluator, metrics)
        metrics = self.running_metrics(metrics)
        corrupted = int(self.objective.corrupted_atoms(batch).sum())
        found = {"corrupted_fraction": Ratio(corrupted, len(batch.pos))}
        if corrupted:
            found |= self.objective.metrics(self.in_physical_units(out, batch), batch)
        found |= self._ordinary_metrics(out, batch, evaluator)
        names = [  # the same on all ranks, whatever their structures
            *metric_names(evaluator.target_metrics),
            *self.objective.metric_names(),
            "corrupted_fraction",
        ]
        ratios = [found.get(name, Ratio(0.0, 0)) for name in names]
        # whether a rank was asked to stop travels along, to save a collective
        numbers = torch.tensor([*chain(*ratios), self.stop_requested()], dtype=torch.float64)
        *numbers, stops = sum_over_ranks(numbers.to(self.device)).tolist()
        self._stop = stops > 0
        if self._not_finite is not None:
            return metrics
        sums = dict(zip(names, map(Ratio, numbers[::2], numbers[1::2]), strict=True))
        sums |= {LOSS_TERM + name: Ratio(value, 1) for name, value in self._loss_values.items()}
        for name, (total, count) in sums.items():
            if count:
                stat = {"total": total, "numel": int(count)}
                metrics = evaluator.update(name, stat, metrics)
        return metrics

    def _ordinary_metrics(self, out, batch, evaluator) -> dict[str, Ratio]:
        """Compute fairchem's metrics on the structures of a batch where they make sense."""
        ordinary = self.objective.ordinary(batch)
        if not ordinary.any():
            return {}
        part, part_out = batch, out
        if not ordinary.all():
            part, part_out = select_structures(batch, out, ordinary)
        kept, wanted = self.output_targets, evaluator.target_metrics
        # fairchem cannot average over no atoms: of these outputs no metrics are made
        counted = {name: self._counted(name, part, "eval_on_free_atoms").any() for name in kept}
        if not all(counted.values()):
            kept = {name: target for name, target in kept.items() if counted[name]}
            wanted = {name: functions for name, functions in wanted.items() if name in kept}
        with replaced(self, output_targets=kept):
            metrics = super()._compute_metrics(part_out, part, evaluator, {})
        found = {name: metrics[name] for name in metric_names(wanted)}
        return {name: Ratio(m["total"], m["numel"]) for name, m in found.items()}

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Corrupt the batches of evaluation mode too in a ``with`` block, if the objective does."""
        self._validating = True
        try:
            yield
        finally:
            self._validating = False

    def update_best(self, primary_metric, val_metrics, disable_eval_tqdm: bool = True) -> None:
        """Save the best checkpoint, with errors and losses of any name taken as better if lower.

        fairchem takes a metric as better if higher, unless its name has "mae" in it.
        """
        name = primary_metric
        if "mae" not in name and find_metric(name).better == "lower":
            name = f"mae: {primary_metric}"  # under which fairchem takes it as meant
            val_metrics = {**val_metrics, name: val_metrics[primary_metric]}
            if self.best_val_metric == _NONE_YET:
                self.best_val_metric = math.inf
        super().update_best(name, val_metrics, disable_eval_tqdm)
