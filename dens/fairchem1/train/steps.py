"""Reproducible training steps: micro-batches, seeds, skipped steps, checkpoints, stop signals.

The training loop is fairchem's. A step begins with the forward pass of its batch and is complete
when the next one begins: after the optimizer, logging, evaluation and the scheduler. Checkpoints
are written and signals obeyed only then, so a resumed run neither repeats nor omits anything.
"""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from fairchem.core.common import distutils, gp_utils
from fairchem.core.trainers import base_trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from dens import transfer
from dens.data.batches import join_outputs, split_batch
from dens.fairchem1.checkpoints.state import dens_state, refuse_non_finite, write_checkpoint
from dens.fairchem1.config.schema import StepSettings
from dens.fairchem1.train.step_metrics import NotFiniteError, PendingStep
from dens.objective import Objective, Progress
from dens.patching import replaced
from dens.process import StopSignals
from dens.random import Stream
from dens.runs.check.schedule import Sampling, check_resume
from dens.runs.not_finite import non_finite_structures
from dens.settings import ConfigError, parse_settings


class ReproducibleSteps:
    """Mixin that makes training steps reproducible, whatever the ranks and micro-batches.

    Use it as ``class MyTrainer(ReproducibleSteps, OCPTrainer)``.

    * ``optim.grad_accumulation_steps: A`` makes a step of ``A * batch_size`` structures, computed
      in micro-batches of ``batch_size``; epochs, schedules and logs count such steps.
    * Random numbers of the model (dropout, drop path, edge frames) depend on the seed, the rank
      and the step alone.
    * All ranks skip a step with a non-finite loss or gradient.
    * Checkpoints are written atomically.

    Raises:
        ConfigError: settings out of range.
        FloatingPointError: more than ``optim.max_skipped_steps`` skipped steps in a row.
    """

    objective: Objective  # declared by the trainer, and so is the next
    progress: Progress
    step_settings: StepSettings
    element_record: Any = None  # an ElementRecord, for checkpoints
    metrics: dict[str, dict]  # of training, as fairchem averages them between logs
    skipped_steps = _skipped_in_a_row = 0  # since the start of training, and just before
    _pending: PendingStep | None = None
    _not_finite: str | None = None  # the non-finite loss terms or gradient of the present step
    _unfinished: tuple[int, float] | None = None  # step and epoch, until complete
    _signals: StopSignals | None = None
    _stop = False  # whether any rank was asked to stop
    _resumed_metrics: dict | None = None
    _resumed_sampling: Sampling | None = None  # of the checkpoint

    def __init__(self, *, optimizer: dict, amp: bool = False, **kwargs: Any) -> None:
        known = {key: optimizer[key] for key in StepSettings.model_fields if key in optimizer}
        self.step_settings = parse_settings(StepSettings, known, "optim")
        if amp and self.step_settings.amp_dtype is not None:
            raise ConfigError(
                f"--amp is float16: leave it out for amp_dtype = {self.step_settings.amp_dtype} "
                "(optim.amp_dtype)"
            )
        self._due: list[str] = []  # checkpoints to write once the step is complete
        self.metrics = {}
        super().__init__(optimizer=optimizer, amp=amp, **kwargs)

    # ---- begin and complete a step ----------------------------------------------------------

    def train(self, disable_eval_tqdm: bool = False) -> None:
        last, now = self.config["optim"]["max_epochs"], self.sampling()
        notice = check_resume(self.step, self.epoch, self._resumed_sampling, now, last)
        if notice and distutils.is_master():
            logging.warning(notice)
        with StopSignals() as self._signals:
            super().train(disable_eval_tqdm)
            if self._unfinished is not None and not self._due:  # save the end of training
                self._due.append("checkpoint.pt")
            self.complete_step()

    def sampling(self) -> Sampling:
        """Return how many structures there are, and how many a step takes on all ranks."""
        n, ranks = len(self.train_dataset), self.data_world_size()
        return Sampling.of(self.config["optim"], n, ranks)

    def begin_step(self) -> None:
        """Complete the step before and seed this one; call it first in the forward pass."""
        self.complete_step()
        self._unfinished = self.step, self.epoch
        self._not_finite = None
        seed = self.config["cmd"]["seed"] or 0
        torch.manual_seed(Stream.MODEL.generator(seed, self.data_rank(), self.step).initial_seed())
        self.optimizer.zero_grad()

    def complete_step(self) -> None:
        """Write the checkpoints that the step before asked for, and obey a stop signal."""
        if self._unfinished is None:
            return
        present, (self.step, self.epoch) = (self.step, self.epoch), self._unfinished
        self._unfinished = None
        due, self._due = self._due, []
        for name in due or ["checkpoint.pt"] * self._stop:
            self.save(checkpoint_file=name)
        if self._stop:
            distutils.synchronize()  # the first rank has saved
            logging.warning(f"Stopped after step {self.step}, which is saved")
            self._stop = False
            self._signals.deliver()
        self.step, self.epoch = present

    def stop_requested(self) -> bool:
        """Return whether this rank was asked to stop by a signal."""
        return self._signals is not None and self._signals.pending is not None

    @staticmethod
    def data_rank() -> int:
        """Return the data-parallel rank: ranks that share a graph share their data."""
        return gp_utils.get_dp_rank() if gp_utils.initialized() else distutils.get_rank()

    @staticmethod
    def data_world_size() -> int:
        """Return the number of data-parallel ranks, or of groups of ranks that share a graph."""
        if gp_utils.initialized():
            return gp_utils.get_dp_world_size()
        return distutils.get_world_size()

    @staticmethod
    def counts_batch() -> bool:
        """Tell whether this rank counts its batch: the first of the ranks that share it does."""
        return not gp_utils.initialized() or gp_utils.get_gp_rank() == 0

    # ---- data and micro-batches -------------------------------------------------------------

    def get_sampler(self, dataset, batch_size: int, shuffle: bool):
        if shuffle:  # the training data
            batch_size *= self.step_settings.grad_accumulation_steps
        return super().get_sampler(dataset, batch_size, shuffle)

    def forward_in_micro_batches(self, batch) -> dict[str, Tensor]:
        """Compute the outputs of a batch in micro-batches, and the gradients of all but the last.

        Only the outputs of the last micro-batch keep their graph, for the trainer's ``backward``.
        """
        if self.step_settings.grad_accumulation_steps == 1:
            return self.forward_micro_batch(batch)
        size = self.config["optim"]["batch_size"]
        parts = split_batch(transfer.on_host(batch), size, self.collater, self.objective)
        *first, last = (transfer.to_device(part, self.device) for part in parts)
        outputs = [self._accumulate(micro_batch) for micro_batch in first]
        return join_outputs([*outputs, self.forward_micro_batch(last)])

    def _accumulate(self, micro_batch) -> dict[str, Tensor]:
        averages = isinstance(self.model, DistributedDataParallel)  # with the last micro-batch only
        with self.model.no_sync() if averages else nullcontext():
            out = self.forward_micro_batch(micro_batch)
            loss = self.local_loss(out, micro_batch)
            with torch.autocast(self.device.type, enabled=False):
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return {name: value.detach() for name, value in out.items()}

    def precision(self) -> AbstractContextManager:
        """Autocast to ``optim.amp_dtype``, if set; the autocast of ``--amp`` is fairchem's."""
        if self.step_settings.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def in_full(self, out: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert outputs computed under :meth:`precision` to float32, for losses and metrics."""
        if self.step_settings.amp_dtype is None:
            return out
        return {name: value.float() for name, value in out.items()}

    # ---- skip non-finite steps --------------------------------------------------------------

    def note_not_finite(self, terms: dict[str, float], out: dict[str, Tensor], batch) -> None:
        """Log the structures of a non-finite loss; ``terms`` are averages over all ranks."""
        if not (bad := [name for name, value in terms.items() if not math.isfinite(value)]):
            return
        self._not_finite = f"the loss term {' and '.join(bad)}"
        if culprits := non_finite_structures(out, batch, self.output_targets):
            named = "; ".join(culprits[:8]) + " ..." * (len(culprits) > 8)
            where = f"step {self.step}, rank {distutils.get_rank()}"
            logging.error(f"{where}: not finite in structure {named}")

    def load_optimizer(self) -> None:
        super().load_optimizer()
        self.optimizer.register_step_pre_hook(self._clip_finite_gradients)

    def _clip_finite_gradients(self, *_: Any) -> None:
        """Clip gradients, which are the same on all ranks, and log their norm.

        Raises:
            NotFiniteError: a gradient, or a loss read late, is not finite; nothing is changed.
        """
        limit = self.config["optim"].get("clip_grad_norm") or math.inf
        try:
            if self._pending is not None:  # on a GPU
                norm = self.clip_late(limit)
            else:
                norm = clip_grad_norm_(self.model.parameters(), limit, error_if_nonfinite=True)
        except RuntimeError:
            named = self._unwrapped_model.named_parameters()
            bad = [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
            names = (bad[0] if bad else "all") + f" and of {len(bad) - 1} more" * (len(bad) > 1)
            raise NotFiniteError(f"the gradient of {names}") from None
        if self.logger is not None:
            self.logger.log({"grad_norm": norm}, step=self.step, split="train")

    def _backward(self, loss: Tensor) -> None:
        if self._not_finite is None:
            before = self.scaler and self.scaler.get_scale()
            try:
                # keep the gradients of earlier micro-batches; the optimizer's hook clips
                with (
                    replaced(self.optimizer, zero_grad=lambda: None),
                    replaced(self, clip_grad_norm=None),
                ):
                    super()._backward(loss)
            except NotFiniteError as error:
                self._not_finite = str(error)
            else:
                self._note_overflow(before)
        if self._pending is not None:
            self.measure_late()
        if self._not_finite is None:
            self._skipped_in_a_row = 0
        else:
            self._skip_step()
        present = {"skipped_steps": self.skipped_steps, **self.objective.schedule(self.progress)}
        for name, value in present.items():  # as they are now, not averages between logs
            self.metrics[name] = {"metric": value, "total": value, "numel": 1}

    def _note_overflow(self, scale_before: float | None) -> None:
        """Note a step that the scaler skipped because gradients overflowed in float16."""
        if self.scaler and self.scaler.get_scale() < scale_before:
            self._not_finite = f"the gradient, in float16 at scale {scale_before:g}"
            if self.scaler.get_scale() >= 1:  # the search for a scale is no failure
                self._skipped_in_a_row = -1

    def _skip_step(self) -> None:
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        self.metrics.pop("loss", None)  # start its mean anew
        if distutils.is_master():
            logging.error(f"step {self.step} is skipped: {self._not_finite} is not finite")
        if self._skipped_in_a_row > self.step_settings.max_skipped_steps:
            raise FloatingPointError(
                f"{self._skipped_in_a_row} steps in a row were not finite, the last one, "
                f"{self.step}, in {self._not_finite}; at most "
                f"{self.step_settings.max_skipped_steps} may be (optim.max_skipped_steps)"
            )

    # ---- checkpoints ------------------------------------------------------------------------

    def save(
        self,
        metrics: dict | None = None,
        checkpoint_file: str = "checkpoint.pt",
        training_state: bool = True,
    ) -> str | None:
        """Write a checkpoint; one to resume from waits until the step is complete."""
        if training_state and self._unfinished is not None:
            self._due.append(checkpoint_file)
            return None
        averages = self.ema.shadow_params if self.ema else []
        averages = (("a moving average", value) for value in averages)
        refuse_non_finite(chain(self._unwrapped_model.named_parameters(), averages))

        def write(state: dict, **where: str) -> str:
            state["dens"] = dens_state(self.metrics, self.skipped_steps, self.element_record)
            state["dens"]["sampling"] = self.sampling()._asdict()
            return write_checkpoint(state, **where)

        with replaced(base_trainer, save_checkpoint=write):
            return super().save(metrics, checkpoint_file, training_state)

    def resumed(self, checkpoint: dict[str, Any]) -> None:
        """Take over from a checkpoint what the parent does not know of."""
        state = checkpoint.get("dens", {})
        self.skipped_steps = state.get("skipped_steps", 0)
        self._resumed_metrics = state.get("metrics")
        if sampling := state.get("sampling"):  # which dens 0.1.0 did not keep
            self._resumed_sampling = Sampling(**sampling)

    def running_metrics(self, metrics: dict | None) -> dict:
        """Return the metrics to update: after resuming, once, those of the checkpoint."""
        before, self._resumed_metrics = self._resumed_metrics, None
        return before or metrics or {}
