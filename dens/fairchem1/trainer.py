"""The DeNS trainer: corruption before the forward pass, the DeNS loss and metrics after it.

The loops (training, validation, prediction, relaxation), data loading, checkpoints and loggers
are fairchem's, inherited.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
import yaml
from fairchem.core.common import distutils, gp_utils
from fairchem.core.common.registry import registry
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from torch import Tensor

from dens.config import ConfigError, DeNSConfig
from dens.corruption import (
    attach,
    corrupt,
    denoising_fields,
    eligible_structures,
    make_generator,
)
from dens.fairchem1.batches import of_atoms, select_structures
from dens.fairchem1.check import check_model_classes, check_targets, parse_dens
from dens.fairchem1.checkpoints.start import load_from, take_pretrained
from dens.fairchem1.graph_parallel import sum_shared_gradients
from dens.fairchem1.oc22 import heed_lin_ref
from dens.fairchem1.translate import is_foreign, translate_model, translate_optim, translate_task
from dens.force_encoding import ForceEncoding
from dens.loss import dens_loss, global_mean, zero_gradient
from dens.metrics import Mean, denoising_metrics

_NOISE_OUTPUT = {"property": "noise", "level": "atom"}


class DeNSMixin:
    """Adds DeNS to a fairchem trainer: ``class MyTrainer(DeNSMixin, OCPTrainer)``.

    Training batches are corrupted as ``optim.dens`` says; validation, prediction and relaxation
    are the parent's, on clean structures. Expects a model whose backbone encodes forces and which
    has a noise head, such as those of :mod:`dens.fairchem1.models`.

    Raises:
        ConfigError: whatever is wrong with the settings, before any data are read; no forces in
            the data, before the first step.
    """

    applies_dens = True

    def __init__(self, *, model: dict, optimizer: dict, task: dict, **kwargs: Any) -> None:
        self.dens = parse_dens(optimizer)
        model, self.pretrained = take_pretrained(model)
        if is_foreign(optimizer):
            model, task = translate_model(model), translate_task(task)
            optimizer = translate_optim(optimizer)
            if distutils.is_master():
                notice = yaml.safe_dump({"optim": {"dens": optimizer["dens"]}}, sort_keys=False)
                logging.warning(f"DeNS settings in an older form were read as\n{notice}")
        check_model_classes(model, self.dens)
        sum_shared_gradients()
        if self.pretrained.path is not None:
            task = {**task, "pretrained": asdict(self.pretrained)}
        super().__init__(model=model, optimizer=optimizer, task=task, **kwargs)

    def load(self, inference_only: bool) -> None:
        super().load(inference_only)
        if self.pretrained.path is not None:
            self.load_checkpoint(self.pretrained.path)

    def load_checkpoint(
        self, checkpoint_path: str, checkpoint: dict | None = None, inference_only: bool = False
    ) -> None:
        """Resume a checkpoint of dens, or start from the weights of any other EquiformerV2."""
        parent = super().load_checkpoint
        load_from(self, parent, checkpoint_path, checkpoint, inference_only)

    def load_task(self) -> None:
        check_targets(self.config)
        super().load_task()
        if self.evaluation_metrics.get("primary_metric") is None:
            self.evaluation_metrics["primary_metric"] = "forces_mae"
            if distutils.is_master():
                logging.warning(
                    "evaluation_metrics.primary_metric is not set: the best checkpoint is the one "
                    "with the lowest forces_mae"
                )

    def load_model(self) -> None:
        super().load_model()
        modules = list(self._unwrapped_model.modules())
        heads = [m for m in modules if getattr(m, "predicts_noise", False)]
        encoder = any(getattr(m, "encodes_forces", False) for m in modules)
        if self.dens.prob > 0 and not (heads and encoder):
            raise ConfigError(
                "the model has no force encoding or no noise head, so it would ignore optim.dens: "
                f"got {type(self._unwrapped_model).__name__} (model)"
            )
        encodings = [m for m in modules if isinstance(m, ForceEncoding)]
        self._dens_parameters = [p for m in heads + encodings for p in m.parameters()]

    def load_datasets(self) -> None:
        heed_lin_ref(self.config)
        super().load_datasets()
        if self.train_loader is None:
            return
        needs = {"forces": "which DeNS encodes (dataset.train.key_mapping renames fields)"}
        if self.dens.exclude_md is True:
            needs["md"] = "which exclude_md: true reads (optim.dens.exclude_md)"
        if self.dens.max_stress_norm is not None:
            needs["stress"] = "which max_stress_norm reads (optim.dens.max_stress_norm)"
        sample = self.train_dataset[0]
        for field, why in needs.items():
            if getattr(sample, field, None) is None:
                raise ConfigError(
                    f"the data in {self.config['dataset']['src']} have no {field}, {why}; they "
                    f"have {', '.join(sorted(sample.keys()))}"
                )

    # ---- one training step ------------------------------------------------------------------

    def _forward(self, batch) -> dict[str, Tensor]:
        batch = batch.to(self.device)
        if self.model.training:
            seed = self.config["cmd"]["seed"] or 0
            self.corrupt_batch(batch, self.dens, make_generator(seed, self._data_rank(), self.step))
        with self._noise_expected(batch):
            return super()._forward(batch)

    def corrupt_batch(self, batch, dens: DeNSConfig, generator: torch.Generator) -> None:
        """Corrupt the structures that ``dens`` and ``generator`` choose, in place."""
        eligible = eligible_structures(
            dens,
            forces=batch.forces,
            batch=batch.batch,
            natoms=batch.natoms,
            md=getattr(batch, "md", None),
            stress=getattr(batch, "stress", None),
            epoch=math.ceil(self.epoch) - 1,
        )
        corruption = corrupt(
            batch.pos,
            batch.batch,
            batch.natoms,
            dens,
            generator,
            fixed=batch.fixed,
            eligible=eligible,
        )
        attach(batch, corruption, batch.forces)

    @staticmethod
    def _data_rank() -> int:
        """Ranks that share a graph share its noise."""
        return gp_utils.get_dp_rank() if gp_utils.initialized() else distutils.get_rank()

    @contextmanager
    def _noise_expected(self, batch) -> Iterator[None]:
        """Let the parent's ``_forward`` pick up the noise output of a corrupted batch."""
        if denoising_fields(batch) is None:
            yield
            return
        self.output_targets["noise"] = _NOISE_OUTPUT
        try:
            yield
        finally:
            del self.output_targets["noise"]

    def _compute_loss(self, out: dict[str, Tensor], batch) -> Tensor:
        if not self.model.training:
            return super()._compute_loss(out, batch)
        loss = sum(self._loss_terms(out, batch).values())
        # ranks that share a graph hold parts of one gradient, which DDP then averages
        return gp_utils.scale_backward_grad(loss) if gp_utils.initialized() else loss

    def _loss_terms(self, out: dict[str, Tensor], batch) -> dict[str, Tensor]:
        """The weighted terms of the training loss, each a mean over all ranks."""
        fields = denoising_fields(batch)
        terms = {}
        for name, info in self.loss_functions:
            if name == "forces":
                terms[name], terms["noise"] = self._denoising_terms(info, out, batch, fields)
            else:
                terms[name] = self._plain_term(name, info, out, batch, fields)
        if fields is None:
            terms["noise"] = terms["noise"] + zero_gradient(self._dens_parameters)
        return terms

    def _denoising_terms(self, info, out, batch, fields):
        pred, scale = out["forces"], self.dens.noise_scale
        counts = of_atoms(batch)
        if self.output_targets["forces"].get("train_on_free_atoms", True):
            counts = batch.fixed == 0
        target = self._normalized("forces", batch)
        return dens_loss(
            forces_pred=pred.to(target.dtype),
            forces=target,
            noise_pred=None if fields is None else out["noise"].to(target.dtype),
            noise=torch.zeros_like(target) if fields is None else fields.noise / scale,
            noise_mask=~of_atoms(batch) if fields is None else fields.noise_mask,
            free=counts,
            force_coefficient=info["coefficient"],
            denoising_coefficient=self.dens.coefficient_at(
                self.epoch / self.config["optim"]["max_epochs"]
            ),
            reduction=self.dens.reduction,
            error=lambda p, t: _rows(info["fn"].loss_fn(p, t, batch.natoms)),
        )

    def _plain_term(self, name, info, out, batch, fields) -> Tensor:
        """A term of the parent's kind; targets other than the energy skip corrupted structures."""
        target = self._normalized(name, batch)
        pred, per_atom = out[name].to(target.dtype), self.output_targets[name]["level"] == "atom"
        rows = of_atoms(batch) if per_atom else torch.ones_like(batch.natoms, dtype=torch.bool)
        if per_atom and self.output_targets[name].get("train_on_free_atoms", True):
            rows = batch.fixed == 0
        if fields is not None and name != "energy":
            clean = fields.sigma == 0
            rows = rows & (clean[batch.batch] if per_atom else clean)
        pred, target = (torch.where(rows[:, None], x, 0) for x in (pred, target))
        total = _rows(info["fn"].loss_fn(pred, target, batch.natoms)).sum()
        if info["fn"].reduction == "mean":
            total = global_mean(total, rows.sum())
        return info["coefficient"] * total

    def _normalized(self, name: str, batch) -> Tensor:
        """The target in the units of the model's output: (n_atoms or n_structures, components)."""
        per_atom = self.output_targets[name]["level"] == "atom"
        target = batch[name].view(len(batch.pos) if per_atom else len(batch.natoms), -1)
        if name in self.elementrefs:
            target = self.elementrefs[name].dereference(target, batch)
        return self.normalizers[name].norm(target) if name in self.normalizers else target

    # ---- metrics ----------------------------------------------------------------------------

    def _compute_metrics(self, out, batch, evaluator, metrics=None) -> dict:
        """S2EF metrics on clean structures, denoising metrics on corrupted ones."""
        metrics = {} if metrics is None else metrics
        if not self.model.training:
            return super()._compute_metrics(out, batch, evaluator, metrics)
        fields = denoising_fields(batch)
        n_corrupted = 0
        if fields is None:
            metrics = super()._compute_metrics(out, batch, evaluator, metrics)
        else:
            n_corrupted = int(fields.noise_mask.sum())
            clean = fields.sigma == 0
            if clean.any():
                part, part_out = select_structures(batch, out, clean)
                metrics = super()._compute_metrics(part_out, part, evaluator, metrics)
            found = self._denoising_metrics(out, batch, fields)
            metrics = _update(evaluator, metrics, found)
        share = {"corrupted_fraction": Mean(n_corrupted, len(batch.pos))}
        return _update(evaluator, metrics, share)

    def _denoising_metrics(self, out, batch, fields) -> dict[str, Mean]:
        targets = self.output_targets["forces"]
        on_free = targets.get("eval_on_free_atoms", True)
        return denoising_metrics(
            noise_pred=out["noise"].detach() * self.dens.noise_scale,
            noise=fields.noise,
            noise_mask=fields.noise_mask,
            forces_pred=self._denorm_preds("forces", out["forces"].detach(), batch),
            forces=batch.forces,
            energy_pred=self._denorm_preds("energy", out["energy"].detach(), batch).view(-1),
            energy=batch.energy,
            free=batch.fixed == 0 if on_free else of_atoms(batch),
            batch=batch.batch,
            sigma=fields.sigma,
            sigmas=self.dens.sigmas,
        )


def _rows(errors: Tensor) -> Tensor:
    """One error for each row, also for losses that keep the components apart."""
    return errors if errors.dim() == 1 else errors.mean(dim=-1)


def _update(evaluator, metrics: dict, found: dict[str, Mean]) -> dict:
    for name, mean in found.items():
        stat = {"total": mean.total, "numel": mean.count}
        metrics = evaluator.update(name, stat, metrics)
    return metrics


@registry.register_trainer("dens")
class DeNSTrainer(DeNSMixin, EquiformerV2ForcesTrainer):
    """EquiformerV2's trainer (schedules in epochs, EMA) with DeNS."""

    def load_extras(self) -> None:
        steps = 0 if self.train_loader is None else len(self.train_loader)
        params = self.config["optim"]["scheduler_params"]
        if steps and "warmup_epochs" in params and params["warmup_epochs"] * steps < 1:
            raise ConfigError(
                f"warmup_epochs must be at least one step, and an epoch has {steps}: got "
                f"{params['warmup_epochs']} (optim.scheduler_params.warmup_epochs)"
            )
        super().load_extras()
