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
from fairchem.core.common import distutils, gp_utils
from fairchem.core.common.registry import registry
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from torch import Tensor

from dens.data.batches import of_atoms
from dens.denoising.config import DeNSConfig
from dens.denoising.corruption import (
    Draws,
    attach,
    corrupt,
    denoising_fields,
    eligible_structures,
    sample_draws_by_structure,
)
from dens.denoising.force_encoding import ForceEncoding
from dens.denoising.loss import dens_loss, loss_counts
from dens.fairchem1.checkpoints.start import load_from, take_pretrained
from dens.fairchem1.config.rules import check_targets, parse_dens
from dens.fairchem1.config.settle import settle
from dens.fairchem1.data.safe_lmdb import use_safe_formats
from dens.fairchem1.model.graph_parallel import sum_shared_gradients
from dens.fairchem1.train.monitored import MonitoredTraining
from dens.fairchem1.train.relaxation import safe_lbfgs
from dens.fairchem1.train.step_metrics import TrainingMetrics
from dens.fairchem1.train.steps import ReproducibleSteps
from dens.process import keep_freed_memory
from dens.random import make_generator
from dens.ranks import global_mean, sum_over_ranks, world_size, zero_gradient
from dens.settings import ConfigError

_NOISE_OUTPUT = {"property": "noise", "level": "atom"}
_STRUCTURES, _BATCHES = 0, 1  # streams of random numbers; the model's are in steps.py


class DeNSMixin(MonitoredTraining, TrainingMetrics, ReproducibleSteps):
    """Adds DeNS to a fairchem trainer: ``class MyTrainer(DeNSMixin, OCPTrainer)``.

    Training batches are corrupted as ``optim.dens`` says; validation, prediction and relaxation
    are the parent's, on clean structures. Expects a model whose backbone encodes forces and which
    has a noise head, such as those of :mod:`dens.fairchem1.model.equiformer_v2`.

    Raises:
        ConfigError: whatever is wrong with the settings, before any data are read; no forces in
            the data, before the first step.
    """

    applies_dens = True

    def __init__(self, *, model: dict, optimizer: dict, task: dict, **kwargs: Any) -> None:
        config = settle({"model": model, "optim": optimizer, "task": task, **kwargs}, type(self))
        self.dens = parse_dens(config["optim"])
        model, self.pretrained = take_pretrained(config["model"])
        sum_shared_gradients()
        task = config["task"]
        if self.pretrained.path is not None:
            task = {**task, "pretrained": asdict(self.pretrained)}
        super().__init__(model=model, optimizer=config["optim"], task=task, **kwargs)
        if self.device.type == "cpu":
            keep_freed_memory()

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
        use_safe_formats(self.config)
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

    def run_relaxations(self) -> None:
        with safe_lbfgs():
            super().run_relaxations()

    # ---- one training step ------------------------------------------------------------------

    def _forward(self, batch) -> dict[str, Tensor]:
        batch = batch.to(self.device)
        if not self.model.training:
            with self.precision():
                out = super()._forward(batch)
            return self.in_full(out)
        self.begin_step()
        self.corrupt_batch(batch, self.dens, self._draws(batch))
        self._counts = self._count_on_all_ranks(batch)
        return self.forward_in_micro_batches(batch)

    def _draws(self, batch) -> Draws:
        """The batch's random numbers: functions of the seed, the epoch and a structure's number.

        So neither the number of ranks nor the place in a batch matters.
        """
        seed, epoch = self.config["cmd"]["seed"] or 0, self._epochs_done()
        return sample_draws_by_structure(
            batch.natoms,
            [make_generator(seed, _STRUCTURES, epoch, i) for i in self._sample_ids(batch)],
            make_generator(seed, _BATCHES, self.step),
            batch.pos.dtype,
        )

    def _sample_ids(self, batch) -> list[int]:
        if "sample_id" in batch:
            return batch.sample_id.tolist()
        # not from the training loader: unique in this step
        n_structures = len(batch.natoms)
        first = (self.step * world_size() + self.data_rank()) * n_structures
        return list(range(first, first + n_structures))

    def _epochs_done(self) -> int:
        return max(math.ceil(self.epoch) - 1, 0)

    def corrupt_batch(self, batch, dens: DeNSConfig, draws: Draws | torch.Generator) -> None:
        """Corrupt the structures that ``dens`` and ``draws`` choose, in place."""
        eligible = eligible_structures(
            dens,
            forces=batch.forces,
            batch=batch.batch,
            natoms=batch.natoms,
            md=getattr(batch, "md", None),
            stress=getattr(batch, "stress", None),
            epoch=self._epochs_done(),
        )
        corruption = corrupt(
            batch.pos,
            batch.batch,
            batch.natoms,
            dens,
            draws,
            fixed=batch.fixed,
            eligible=eligible,
        )
        attach(batch, corruption, batch.forces)

    def forward_micro_batch(self, batch) -> dict[str, Tensor]:
        """Outputs for corrupted and clean structures, of training; those for noise always."""
        with self.precision(), self._noise_expected(batch):
            out = self.in_full(super()._forward(batch))
        if "noise" not in out:
            # every parameter has a gradient on every rank, as DDP expects, and weight decay and
            # momentum treat clean and corrupted steps alike
            zeros = torch.zeros_like(out["forces"])
            out["noise"] = zeros + zero_gradient(self._dens_parameters)
        return out

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

    # ---- loss -------------------------------------------------------------------------------

    def _compute_loss(self, out: dict[str, Tensor], batch) -> Tensor:
        if not self.model.training:
            return super()._compute_loss(out, batch)
        terms = self._loss_terms(out, batch)
        self.watch.gradients(terms)
        values = torch.stack([term.detach().double() for term in terms.values()])
        values = sum_over_ranks(values) / world_size()
        self._loss_values = dict(zip(terms, values.tolist(), strict=True))
        self.note_not_finite(self._loss_values, out, batch)
        loss = self._scaled(sum(terms.values()))
        # the gradient is this rank's part, the value that of all ranks
        return loss + (values.sum() - loss.detach()).to(loss.dtype) if world_size() > 1 else loss

    def local_loss(self, out: dict[str, Tensor], batch) -> Tensor:
        """This rank's part of the step's loss, for one micro-batch."""
        return self._scaled(sum(self._loss_terms(out, batch).values()))

    @staticmethod
    def _scaled(loss: Tensor) -> Tensor:
        # ranks that share a graph hold parts of one gradient, which DDP then averages
        return gp_utils.scale_backward_grad(loss) if gp_utils.initialized() else loss

    def _loss_terms(self, out: dict[str, Tensor], batch) -> dict[str, Tensor]:
        """The weighted terms of the training loss, each a mean over the step's batch."""
        terms = {}
        for name, info in self.loss_functions:
            if name == "forces":
                terms[name], terms["noise"] = self._denoising_terms(info, out, batch)
            else:
                terms[name] = self._plain_term(name, info, out, batch)
        return terms

    def _count_rows(self, batch) -> dict[str, Tensor]:
        """For each term the number of rows that its mean runs over, on this rank."""
        counts = {name: self._rows(name, batch).sum() for name, _ in self.loss_functions}
        free = self._free(batch, "train_on_free_atoms")
        counts["forces"] = loss_counts(batch.noise_mask, free, self.dens.reduction)
        return counts

    def _count_on_all_ranks(self, batch) -> dict[str, Tensor]:
        counts = self._count_rows(batch)
        flat = sum_over_ranks(torch.cat([count.view(-1) for count in counts.values()]))
        parts = flat.split([count.numel() for count in counts.values()])
        return {name: p.view_as(counts[name]) for name, p in zip(counts, parts, strict=True)}

    def _free(self, batch, setting: str) -> Tensor:
        """(n_atoms,) bool: whose forces count."""
        free_only = self.output_targets["forces"].get(setting, True)
        return batch.fixed == 0 if free_only else of_atoms(batch)

    def _denoising_terms(self, info, out, batch):
        target = self._normalized("forces", batch)
        return dens_loss(
            forces_pred=out["forces"].to(target.dtype),
            forces=target,
            noise_pred=out["noise"].to(target.dtype),
            noise=batch.noise / self.dens.noise_scale,
            noise_mask=batch.noise_mask,
            free=self._free(batch, "train_on_free_atoms"),
            force_coefficient=info["coefficient"],
            denoising_coefficient=self.dens.coefficient_at(
                self.epoch / self.config["optim"]["max_epochs"]
            ),
            counts=self._counts["forces"],
            error=lambda p, t: _errors(info["fn"].loss_fn(p, t, batch.natoms)),
        )

    def _rows(self, name: str, batch) -> Tensor:
        """(n_atoms,) or (n_structures,) bool: what counts in a term of the parent's kind.

        Targets other than the energy skip corrupted structures.
        """
        clean = batch.sigma == 0
        if self.output_targets[name]["level"] != "atom":
            return clean if name != "energy" else torch.ones_like(clean)
        free_only = self.output_targets[name].get("train_on_free_atoms", True)
        return clean[batch.batch] & (batch.fixed == 0 if free_only else of_atoms(batch))

    def _plain_term(self, name, info, out, batch) -> Tensor:
        target = self._normalized(name, batch)
        rows = self._rows(name, batch)[:, None]
        pred, target = (torch.where(rows, x, 0) for x in (out[name].to(target.dtype), target))
        total = _errors(info["fn"].loss_fn(pred, target, batch.natoms)).sum()
        if info["fn"].reduction == "mean":
            total = global_mean(total, self._counts[name])
        return info["coefficient"] * total

    def _normalized(self, name: str, batch) -> Tensor:
        """The target in the units of the model's output: (n_atoms or n_structures, components)."""
        per_atom = self.output_targets[name]["level"] == "atom"
        target = batch[name].view(len(batch.pos) if per_atom else len(batch.natoms), -1)
        if name in self.elementrefs:
            target = self.elementrefs[name].dereference(target, batch)
        return self.normalizers[name].norm(target) if name in self.normalizers else target


def _errors(errors: Tensor) -> Tensor:
    """One error for each row, also for losses that keep the components apart."""
    return errors if errors.dim() == 1 else errors.mean(dim=-1)


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
