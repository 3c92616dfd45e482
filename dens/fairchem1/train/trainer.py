"""DeNS trainer: corrupts batches before the forward pass and computes the DeNS loss after it.

The loops (training, validation, prediction, relaxation), data loading, checkpoints and loggers
are inherited from fairchem.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from fairchem.core.common import distutils, gp_utils
from fairchem.core.common.registry import registry
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from torch import Tensor
from torch.nn import Parameter

from dens.data.checked import checked
from dens.denoising.config import DeNSConfig
from dens.denoising.corruption import (
    Draws,
    attach,
    corrupt_batch,
    denoising_fields,
    sample_draws_by_structure,
)
from dens.denoising.force_encoding import ForceEncoding
from dens.fairchem1.checkpoints.start import Pretrained, load_from, take_pretrained
from dens.fairchem1.checkpoints.state import ElementRecord
from dens.fairchem1.config.rules import check_targets, parse_dens
from dens.fairchem1.config.settle import settle
from dens.fairchem1.data.safe_lmdb import use_safe_formats
from dens.fairchem1.model.graph_parallel import sum_shared_gradients
from dens.fairchem1.train.logger import with_run_log
from dens.fairchem1.train.loss_terms import LossTerms
from dens.fairchem1.train.relaxation import safe_lbfgs
from dens.fairchem1.train.step_metrics import TrainingMetrics
from dens.fairchem1.train.steps import ReproducibleSteps
from dens.fields import SAMPLE_ID
from dens.patching import replaced
from dens.process import keep_freed_memory
from dens.random import Stream
from dens.ranks import sum_over_ranks, world_size, zero_gradient
from dens.runs.log import RunLog
from dens.runs.monitor.training import TrainingMonitor
from dens.settings import ConfigError

_NOISE_OUTPUT = {"property": "noise", "level": "atom"}


class DeNSMixin(TrainingMetrics, LossTerms, ReproducibleSteps):
    """Mixin that adds DeNS to a fairchem trainer: ``class MyTrainer(DeNSMixin, OCPTrainer)``.

    Training batches are corrupted according to ``optim.dens``; validation, prediction and
    relaxation are the parent's, on clean structures. The model needs a backbone that encodes forces
    and a noise head, such as those of :mod:`dens.fairchem1.model.equiformer_v2`.

    Raises:
        ConfigError: wrong settings, before any data are read; data without a field that DeNS
            reads, before the first step.
    """

    applies_dens = True
    monitor: TrainingMonitor | None = None  # until data and model are loaded
    pretrained: Pretrained
    checkpoint_notices: tuple[str, ...] = ()
    _dens_parameters: list[Parameter]  # of force encodings and noise heads
    _loss_values: dict[str, float]  # terms of the step's loss, averaged over ranks

    def __init__(self, *, model: dict, optimizer: dict, task: dict, **kwargs: Any) -> None:
        config = settle({"model": model, "optim": optimizer, "task": task, **kwargs}, type(self))
        self.dens = parse_dens(config["optim"])
        model, self.pretrained = take_pretrained(config["model"])
        sum_shared_gradients()
        task = config["task"]
        if self.pretrained.path is not None:
            task = {**task, "pretrained": self.pretrained.model_dump()}
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

    def load_optimizer(self) -> None:
        super().load_optimizer()
        self.element_record = ElementRecord.of(self._unwrapped_model, self.optimizer)

    def notify_checkpoint(self, notice: str) -> None:
        """Log how a checkpoint changed or extended what the config says."""
        self.checkpoint_notices += (notice,)
        if distutils.is_master():
            logging.warning(notice)

    def rebuild_model(self, section: dict[str, Any]) -> None:
        """Build the model, optimizer and schedule again, with another ``model`` section."""
        self.config["model"] = section
        self.load_model()
        if hasattr(self, "optimizer"):
            self.load_optimizer()
            self.load_extras()

    def load_logger(self) -> None:
        super().load_logger()
        if self.logger is not None and not isinstance(self.logger, RunLog):
            self.logger = with_run_log(self.logger, self.config)

    def load_extras(self) -> None:
        super().load_extras()
        self.monitor = TrainingMonitor(self)

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
        for field, setting in self.dens.required_fields.items():
            needs[field] = f"which {setting} reads (optim.dens.{setting})"
        sample = self.train_dataset[0]
        for field, why in needs.items():
            if getattr(sample, field, None) is None:
                raise ConfigError(
                    f"the data in {self.config['dataset']['src']} have no {field}, {why}; they "
                    f"have {', '.join(sorted(sample.keys()))}"
                )

    def load_references_and_normalizers(self) -> None:
        """Fit references and normalizers, if asked to, to records that are validated."""
        dataset = getattr(self, "train_dataset", None)
        if dataset is None:
            super().load_references_and_normalizers()
            return
        with replaced(self, train_dataset=checked(dataset, "train", self.config)):
            super().load_references_and_normalizers()

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> dict[str, Any]:
        metrics = super().validate(split, disable_tqdm)
        if self.monitor is not None:
            self.monitor.after_validation(split)
        return metrics

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
        """Draw the random numbers of a batch: functions of the seed, the epoch and a sample id.

        So neither the number of ranks nor the place in a batch matters.
        """
        seed, epoch = self.config["cmd"]["seed"] or 0, self._epochs_done()
        ids = self._sample_ids(batch)
        streams = [Stream.STRUCTURES.generator(seed, epoch, i) for i in ids]
        whole = Stream.BATCHES.generator(seed, self.step)
        return sample_draws_by_structure(batch.natoms, streams, whole, batch.pos.dtype)

    def _sample_ids(self, batch) -> list[int]:
        if SAMPLE_ID.name in batch:
            return batch[SAMPLE_ID.name].tolist()
        # not from the training loader: make ids that are unique in this step
        n_structures = len(batch.natoms)
        first = (self.step * world_size() + self.data_rank()) * n_structures
        return list(range(first, first + n_structures))

    def _epochs_done(self) -> int:
        return max(math.ceil(self.epoch) - 1, 0)

    def corrupt_batch(self, batch, dens: DeNSConfig, draws: Draws | torch.Generator) -> None:
        """Corrupt the structures that ``dens`` and ``draws`` choose, in place."""
        corruption = corrupt_batch(batch, dens, draws, epoch=self._epochs_done())
        attach(batch, corruption, batch.forces)

    def forward_micro_batch(self, batch) -> dict[str, Tensor]:
        """Compute training outputs; ``noise`` is zeros if no atom is corrupted.

        Those zeros give every parameter a gradient on every rank, as DDP expects, and weight decay
        and momentum treat clean and corrupted steps alike.
        """
        targets = self.output_targets
        if denoising_fields(batch) is not None:
            targets = {**targets, "noise": _NOISE_OUTPUT}
        with self.precision(), replaced(self, output_targets=targets):
            out = self.in_full(super()._forward(batch))
        if "noise" not in out:
            zeros = torch.zeros_like(out["forces"])
            out["noise"] = zeros + zero_gradient(self._dens_parameters)
        return out

    def _compute_metrics(self, out, batch, evaluator, metrics=None) -> dict[str, Any]:
        metrics = super()._compute_metrics(out, batch, evaluator, metrics)
        if self.model.training and self.monitor is not None:
            self.monitor.step(batch)
        return metrics

    # ---- loss -------------------------------------------------------------------------------

    def _compute_loss(self, out: dict[str, Tensor], batch) -> Tensor:
        if not self.model.training:
            return super()._compute_loss(out, batch)
        terms = self._loss_terms(out, batch)
        self.monitor.gradients(terms)
        values = torch.stack([term.detach().double() for term in terms.values()])
        values = sum_over_ranks(values) / world_size()
        self._loss_values = dict(zip(terms, values.tolist(), strict=True))
        self.note_not_finite(self._loss_values, out, batch)
        loss = self._scaled(sum(terms.values()))
        # the value is that of all ranks, the gradient is this rank's part
        return loss + (values.sum() - loss.detach()).to(loss.dtype) if world_size() > 1 else loss

    def local_loss(self, out: dict[str, Tensor], batch) -> Tensor:
        """Compute the contribution of one micro-batch on this rank to the loss of the step."""
        return self._scaled(sum(self._loss_terms(out, batch).values()))

    @staticmethod
    def _scaled(loss: Tensor) -> Tensor:
        # ranks that share a graph hold parts of one gradient; DDP then averages them
        return gp_utils.scale_backward_grad(loss) if gp_utils.initialized() else loss


@registry.register_trainer("dens")
class DeNSTrainer(DeNSMixin, EquiformerV2ForcesTrainer):
    """EquiformerV2's trainer (schedules in epochs, EMA) with DeNS, registered as ``dens``."""

    def load_extras(self) -> None:
        steps = 0 if self.train_loader is None else len(self.train_loader)
        params = self.config["optim"]["scheduler_params"]
        if steps and "warmup_epochs" in params and params["warmup_epochs"] * steps < 1:
            raise ConfigError(
                f"warmup_epochs must be at least one step, and an epoch has {steps}: got "
                f"{params['warmup_epochs']} (optim.scheduler_params.warmup_epochs)"
            )
        super().load_extras()
