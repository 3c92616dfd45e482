"""Metrics of a training step, over all ranks, with forces and noise kept apart."""

from __future__ import annotations

from itertools import chain

import torch

from dens.data.batches import select_structures
from dens.denoising.corruption import denoising_fields
from dens.denoising.metrics import denoising_metric_names, denoising_metrics
from dens.fairchem1.config.rules import metric_names
from dens.metrics import LOSS_TERM, Ratio
from dens.patching import replaced
from dens.ranks import sum_over_ranks


class TrainingMetrics:
    """Mixin that measures the training steps of a DeNS trainer; validation is fairchem's.

    It stands before :class:`~dens.fairchem1.train.steps.ReproducibleSteps` among the bases. Imports
    nothing of fairchem, but overrides a method of its trainers.
    """

    _loss_values: dict[str, float]  # the loss terms of the present step, set by the trainer

    def _compute_metrics(self, out, batch, evaluator, metrics=None) -> dict:
        """Compute S2EF metrics on clean structures and denoising metrics on corrupted ones."""
        if not self.model.training:
            return super()._compute_metrics(out, batch, evaluator, metrics)
        metrics = self.running_metrics(metrics)
        corrupted = int(batch.noise_mask.sum())
        found = {"corrupted_fraction": Ratio(corrupted, len(batch.pos))}
        found |= self.denoising_metrics(out, batch, denoising_fields(batch)) if corrupted else {}
        found |= self._clean_metrics(out, batch, evaluator)
        names = [  # the same on all ranks, whatever their structures
            *metric_names(evaluator.target_metrics),
            *denoising_metric_names(self.dens.sigmas),
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

    def _clean_metrics(self, out, batch, evaluator) -> dict[str, Ratio]:
        """Compute fairchem's metrics on the clean structures of a batch."""
        clean = batch.sigma == 0
        if not clean.any():
            return {}
        part, part_out = select_structures(batch, out, clean)
        kept, wanted = self.output_targets, evaluator.target_metrics
        if not self._free(part, "eval_on_free_atoms").any():
            # fairchem cannot average over no atoms: only metrics per structure remain
            kept = {name: target for name, target in kept.items() if target["level"] != "atom"}
            wanted = {name: functions for name, functions in wanted.items() if name in kept}
        with replaced(self, output_targets=kept):
            metrics = super()._compute_metrics(part_out, part, evaluator, {})
        found = {name: metrics[name] for name in metric_names(wanted)}
        return {name: Ratio(m["total"], m["numel"]) for name, m in found.items()}

    def denoising_metrics(self, out, batch, fields) -> dict[str, Ratio]:
        """Compute the denoising metrics of a corrupted batch from the model's outputs for it."""
        return denoising_metrics(
            noise_pred=out["noise"].detach() * self.dens.noise_scale,
            noise=fields.noise,
            noise_mask=fields.noise_mask,
            forces_pred=self._denorm_preds("forces", out["forces"].detach(), batch),
            forces=batch.forces,
            energy_pred=self._denorm_preds("energy", out["energy"].detach(), batch).view(-1),
            energy=batch.energy,
            free=self._free(batch, "eval_on_free_atoms"),
            batch=batch.batch,
            sigma=fields.sigma,
            sigmas=self.dens.sigmas,
        )
