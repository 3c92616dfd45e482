"""The metrics of a training step: of all ranks, with forces and noise kept apart."""

from __future__ import annotations

import torch

from dens.data.batches import select_structures
from dens.denoising.corruption import denoising_fields
from dens.denoising.metrics import denoising_metric_names, denoising_metrics
from dens.fairchem1.config.rules import metric_names
from dens.metrics import Ratio
from dens.patching import replaced
from dens.ranks import sum_over_ranks


class TrainingMetrics:
    """The part of a DeNS trainer that measures its training steps; validation is fairchem's."""

    def _compute_metrics(self, out, batch, evaluator, metrics=None) -> dict:
        """S2EF metrics on clean structures, denoising metrics on corrupted ones, of all ranks."""
        if not self.model.training:
            return super()._compute_metrics(out, batch, evaluator, metrics)
        metrics = self.running_metrics(metrics)
        found = self._step_metrics(out, batch, evaluator)
        names = [  # the same on all ranks, whatever their structures
            *metric_names(evaluator.target_metrics),
            *denoising_metric_names(self.dens.sigmas),
            "corrupted_fraction",
            "stop",
        ]
        sums = torch.tensor([found.get(name, (0.0, 0)) for name in names], dtype=torch.float64)
        sums = dict(zip(names, sum_over_ranks(sums.to(self.device)).tolist(), strict=True))
        self._stop = sums.pop("stop")[1] > 0
        if self._not_finite is not None:
            return metrics
        for name, value in self._loss_values.items():
            sums[f"loss_{name}"] = value, 1
        for name, (total, count) in sums.items():
            if count:
                stat = {"total": total, "numel": int(count)}
                metrics = evaluator.update(name, stat, metrics)
        return metrics

    def _step_metrics(self, out, batch, evaluator) -> dict[str, Ratio]:
        """Sums and counts of this rank."""
        corrupted = int(batch.noise_mask.sum())
        found = {
            "corrupted_fraction": Ratio(corrupted, len(batch.pos)),
            "stop": Ratio(0, int(self.stop_requested())),
        }
        if corrupted:
            found.update(self._denoising_metrics(out, batch, denoising_fields(batch)))
        found.update(self._clean_metrics(out, batch, evaluator))
        return found

    def _clean_metrics(self, out, batch, evaluator) -> dict[str, Ratio]:
        clean = batch.sigma == 0
        if not clean.any():
            return {}
        part, part_out = select_structures(batch, out, clean)
        kept, wanted = self.output_targets, evaluator.target_metrics
        if not self._free(part, "eval_on_free_atoms").any():
            # fairchem cannot average over no atoms: what remains is per structure
            kept = {name: target for name, target in kept.items() if target["level"] != "atom"}
            wanted = {name: functions for name, functions in wanted.items() if name in kept}
        with replaced(self, output_targets=kept):
            metrics = super()._compute_metrics(part_out, part, evaluator, {})
        return {
            name: Ratio(metrics[name]["total"], metrics[name]["numel"])
            for name in metric_names(wanted)
        }

    def _denoising_metrics(self, out, batch, fields) -> dict[str, Ratio]:
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
