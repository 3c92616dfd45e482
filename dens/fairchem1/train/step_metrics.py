"""Metrics of a training step, over all ranks, with ordinary and corrupted structures apart."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dens import transfer
from dens.data.batches import select_structures
from dens.fairchem1.config.rules import metric_names
from dens.metrics import LOSS_TERM, Ratio, find_metric
from dens.objective import Objective
from dens.patching import replaced
from dens.ranks import sum_over_ranks, world_size

_NONE_YET = -1.0  # fairchem's best metric before the first evaluation, if higher is better


class NotFiniteError(Exception):
    """A loss or a gradient is not finite; raised before the optimizer changes anything."""


class PendingStep(NamedTuple):
    """A step whose loss and outputs are on a GPU, not read by the host yet."""

    loss: Tensor
    names: list[str]  # of its terms
    values: Tensor  # (terms,), averages over all ranks
    out: dict[str, Tensor]
    batch: Any


class TrainingMetrics:
    """Mixin that measures the training steps of an objective; validation is fairchem's.

    On a GPU the host reads a step once, after the backward pass, and measures it while the
    optimizer works. (With ``--amp`` it reads earlier, since fairchem's scaler waits as well.)

    It stands before :class:`~dens.fairchem1.train.steps.ReproducibleSteps` among the bases. Imports
    nothing of fairchem, but overrides a method of its trainers.
    """

    objective: Objective
    _validating = False
    _pending: PendingStep | None = None
    _loss_values: dict[str, float]  # terms of the loss of the present step, averages over ranks
    _host_modules: dict[str, dict] | None = None  # copies of normalizers and references

    def note_loss(
        self, loss: Tensor, names: list[str], values: Tensor, out: dict[str, Tensor], batch
    ) -> None:
        """Read the terms of the loss, averages over all ranks; on a GPU, have it done later."""
        if transfer.is_host(self.device) or self.scaler is not None:
            self._loss_values = dict(zip(names, values.tolist(), strict=True))
            self.note_not_finite(self._loss_values, out, batch)
        else:
            self._pending = PendingStep(loss, names, values, out, batch)

    def clip_late(self, limit: float) -> Tensor:
        """Read the pending step, where the host waits once, and clip the gradient.

        Returns:
            the norm of the gradient, on the host.

        Raises:
            NotFiniteError, RuntimeError: the loss, or the norm, is not finite.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        norm = self._read_late(norm)
        if self._not_finite is not None:
            raise NotFiniteError(self._not_finite)
        if not norm.isfinite():
            raise RuntimeError("the norm of the gradient is not finite")
        factor = float(limit / (norm + 1e-6))  # as PyTorch's clip_grad_norm_
        if factor < 1:
            torch._foreach_mul_(gradients, factor)
        return norm

    def _read_late(self, norm: Tensor) -> Tensor:
        """Copy the pending step and the norm of the gradient to the host in one transfer."""
        step = self._pending
        numbers = {"loss": step.loss, "loss terms": step.values, "norm of the gradient": norm}
        found = transfer.read({**numbers, **step.out})
        out = {name: found[name] for name in step.out}
        loss, values, norm = (found[name] for name in numbers)
        self._pending = PendingStep(loss, step.names, values, out, transfer.on_host(step.batch))
        self._loss_values = dict(zip(step.names, values.tolist(), strict=True))
        self.note_not_finite(self._loss_values, out, self._pending.batch)
        return norm

    def measure_late(self) -> None:
        """Update the metrics with the step that :meth:`clip_late` has read."""
        step, self._pending = self._pending, None
        if "loss" in self.metrics and not self.metrics["loss"]["numel"]:
            del self.metrics["loss"]  # it comes after the others
        self._measure(step.out, step.batch, self.evaluator, self.metrics)
        self.evaluator.update("loss", step.loss.item(), self.metrics)

    def _compute_metrics(self, out, batch, evaluator, metrics=None) -> dict:
        """Compute fairchem's metrics on ordinary structures, the objective's on corrupted ones."""
        if not self.model.training:
            return super()._compute_metrics(out, batch, evaluator, metrics)
        metrics = self.running_metrics(metrics)
        if self._pending is None:
            return self._measure(transfer.read(out), transfer.on_host(batch), evaluator, metrics)
        # fairchem's loop asks for the value of the loss before the backward pass, and adds it to
        # the metrics if it is a number
        self._pending.loss.item = lambda: None
        return metrics

    def _measure(self, out: dict[str, Tensor], batch, evaluator, metrics: dict) -> dict:
        """Update ``metrics`` with a step whose outputs and batch are on the host."""
        with self._on_host():
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
        if world_size() > 1:
            numbers = sum_over_ranks(numbers.to(self.device))
        *numbers, stops = numbers.tolist()
        self._stop = stops > 0
        if not all(map(math.isfinite, self._loss_values.values())):
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
    def _on_host(self) -> Iterator[None]:
        """Compute fairchem's metrics on the host in a ``with`` block."""
        if transfer.is_host(self.device):
            yield
            return
        if self._host_modules is None:
            self._host_modules = {
                kind: {
                    name: copy.deepcopy(module)._apply(transfer.copy_to_host)
                    for name, module in getattr(self, kind).items()
                }
                for kind in ("normalizers", "elementrefs")
            }
        with replaced(self, device=torch.device("cpu"), **self._host_modules):
            yield

    def forget_host_modules(self) -> None:
        """Copy normalizers and references to the host anew; call it when they have changed."""
        self._host_modules = None

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
