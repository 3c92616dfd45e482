"""Reproducible training steps: seeds, skipped steps, stop signals.

The training loop is torchtnt's. A step begins with the unit's ``train_step`` and is complete when
the next batch is asked for: after the optimizer, logging and evaluation. Signals are obeyed only
then, and fairchem's checkpoints are written then, so a resumed run neither repeats nor omits
anything.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from fairchem.core.common import distutils, gp_utils
from fairchem.core.launchers.api import SchedulerType
from fairchem.core.units.mlip_unit.mlip_unit import UNIT_RESUME_CONFIG
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from dens.fairchem2.attach import whole_graph
from dens.patching import replaced
from dens.process import StopSignals
from dens.random import Stream
from dens.ranks import sum_over_ranks
from dens.runs.not_finite import non_finite_structures
from dens.settings import ConfigError

_SHOWN = 8  # structures of a message


class ReproducibleSteps:
    """Mixin that makes a unit's training steps reproducible.

    * Random numbers of the model (rolls of edge frames, dropout) depend on the seed, the rank and
      the step alone.
    * All ranks skip a step with a non-finite loss or gradient: weights, optimizer and moving
      average stay as they are. The structures are named and the steps counted.
    * SIGTERM, or submitit's signal of preemption, saves the present step.

    Args:
        max_skipped_steps: steps in a row that may be skipped.

    Raises:
        FloatingPointError: in training, where more are.
    """

    job_config: Any
    model: nn.Module
    ema_model: nn.Module | None
    optimizer: Optimizer
    last_grad_norm: Any
    train_progress: Any  # torchtnt's
    skipped_steps = 0  # since the start of training
    _dens_in_a_row = 0
    _dens_batch: Any = None  # of the present step; None between steps
    _dens_step_ends: ExitStack
    _dens_skipped = False  # whether the present step is
    _dens_signals: StopSignals | None = None
    _dens_stop = False  # whether any rank was asked to stop

    def __init__(self, *args: Any, max_skipped_steps: int = 10, **kwargs: Any) -> None:
        if max_skipped_steps < 1:
            raise ConfigError(
                f"max_skipped_steps must be an integer >= 1, got {max_skipped_steps} "
                "(runner.train_eval_unit.max_skipped_steps)"
            )
        super().__init__(*args, **kwargs)
        self.max_skipped_steps = max_skipped_steps
        self.optimizer.register_step_pre_hook(self._dens_before_optimizer)

    @property
    def seed(self) -> int:
        """The seed of the job."""
        return int(self.job_config.get("seed") or 0)

    # ---- one step ---------------------------------------------------------------------------

    @contextmanager
    def reproducible_step(self, batch: Any) -> Iterator[None]:
        """Seed a training step on ``batch`` and let it be skipped, within a ``with`` block."""
        step = self.train_progress.num_steps_completed
        generator = Stream.MODEL.generator(self.seed, data_rank(), step)
        torch.manual_seed(generator.initial_seed())
        self._dens_batch, self._dens_skipped = batch, False
        with ExitStack() as self._dens_step_ends:
            try:
                yield
            finally:
                self._dens_batch = None

    def step_loss(self) -> Tensor:
        """Return the loss of the present step on this rank, a scalar without graph."""
        raise NotImplementedError

    def step_outputs(self) -> Mapping[str, Tensor]:
        """Return the model's outputs of the present step, by the name of a loss term."""
        raise NotImplementedError

    def _dens_before_optimizer(self, *_: Any) -> None:
        """Skip the optimizer's step where the loss or the gradient of any rank is not finite."""
        if self._dens_batch is None:  # not a training step: PyTorch makes an optimizer's state so
            return
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients) if self.last_grad_norm is None else self.last_grad_norm
        loss = self.step_loss()
        norm = torch.as_tensor(norm, device=loss.device)
        stop = self._dens_signals is not None and self._dens_signals.pending is not None
        flags = [~loss.isfinite(), ~norm.isfinite(), torch.tensor(stop, device=loss.device)]
        # the only wait for the device, and the only collective beside that of the counts
        bad_loss, bad_norm, stops = sum_over_ranks(torch.stack(flags).int()).tolist()
        self._dens_stop = stops > 0
        if not (bad_loss or bad_norm):
            self._dens_in_a_row = 0
            return
        for parameter in self.model.parameters():
            parameter.grad = None
        if self.ema_model is not None:
            still = replaced(self.ema_model, update_parameters=lambda model: None)
            self._dens_step_ends.enter_context(still)
        self._dens_note_skipped("loss" if bad_loss else "gradient")

    def _dens_note_skipped(self, what: str) -> None:
        """Log and count a skipped step, and the structures that are not finite."""
        step = self.train_progress.num_steps_completed
        self._dens_skipped = True
        self.skipped_steps += 1
        self._dens_in_a_row += 1
        whole_graph(self._dens_batch)
        if culprits := non_finite_structures(self.step_outputs(), self._dens_batch, ()):
            named = "; ".join(culprits[:_SHOWN]) + " ..." * (len(culprits) > _SHOWN)
            where = f"step {step}, rank {distutils.get_rank()}"
            logging.error(f"{where}: not finite in structure {named}")
        if distutils.is_master():
            logging.error(
                f"step {step} is skipped: the {what} is not finite; skipped so far: "
                f"{self.skipped_steps}"
            )
        if self._dens_in_a_row > self.max_skipped_steps:
            raise FloatingPointError(
                f"{self._dens_in_a_row} steps in a row were not finite, the last one {step}; at "
                f"most {self.max_skipped_steps} may be "
                "(runner.train_eval_unit.max_skipped_steps)"
            )

    # ---- stop signals -----------------------------------------------------------------------

    def on_train_start(self, state: Any) -> None:
        super().on_train_start(state)
        if threading.current_thread() is threading.main_thread():
            # where fairchem handles SIGTERM itself, it goes back to an earlier checkpoint
            local = self.job_config.scheduler.mode == SchedulerType.LOCAL
            self._dens_signals = StopSignals(replace=local).__enter__()

    def on_train_end(self, state: Any) -> None:
        self._dens_release_signals()
        super().on_train_end(state)

    def on_exception(self, state: Any, exc: BaseException) -> None:
        self._dens_release_signals()
        super().on_exception(state, exc)

    def _dens_release_signals(self) -> None:
        if self._dens_signals is not None:
            self._dens_signals.__exit__()
            self._dens_signals = None

    def get_next_train_batch(self, state: Any, data_iter: Iterator[Any]) -> Any:
        """Return the next batch, unless a rank was asked to stop: then save the present state."""
        # first, since fairchem's samplers cannot resume behind the last batch of an epoch
        batch = super().get_next_train_batch(state, data_iter)
        if self._dens_stop:
            self._dens_save_and_stop()
        return batch

    def _dens_save_and_stop(self) -> None:
        done = self.train_progress.num_steps_completed
        folder = os.path.join(self.job_config.metadata.checkpoint_dir, f"step_{done}")
        self.save_state(folder)
        distutils.synchronize()  # the first rank has saved
        if distutils.is_master():
            logging.warning(
                f"stopped after {done} steps, which are saved; to go on: "
                f"fairchem -c {folder}/{UNIT_RESUME_CONFIG}"
            )
        signals, self._dens_stop = self._dens_signals, False
        self._dens_release_signals()
        try:
            signals.deliver()
        finally:
            distutils.cleanup()
        sys.exit(0)  # submitit's handler has requeued the job

    # ---- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "dens": self.dens_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.load_dens_state(state_dict["dens"])

    def dens_state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside fairchem's state."""
        return {"skipped_steps": self.skipped_steps}

    def load_dens_state(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint keeps beside fairchem's state."""
        self.skipped_steps = state["skipped_steps"]


def data_rank() -> int:
    """Return the data-parallel rank: ranks that share a graph share their data."""
    return gp_utils.get_dp_rank() if gp_utils.initialized() else distutils.get_rank()


def data_ranks() -> int:
    """Return the number of data-parallel ranks, or of groups of ranks that share a graph."""
    return gp_utils.get_dp_world_size() if gp_utils.initialized() else distutils.get_world_size()
