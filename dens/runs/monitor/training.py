"""Log speed, gradient shares and denoising quality during training."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from torch import Tensor

from dens.metrics import GRADIENT_SHARE
from dens.ranks import is_master, sum_over_ranks, world_size
from dens.runs.monitor.settings import parse_monitor
from dens.runs.monitor.validation import DenoisingValidation

_WINDOW = 10  # steps over which the speed is averaged


class TrainingMonitor:
    """Monitor that measures training and logs it through the trainer's logger.

    Every rank must call every method, since they contain collectives; the master logs.

    Args:
        trainer: a DeNS trainer whose data, model and optimizer are loaded.

    Raises:
        ConfigError: the settings under ``optim.watch`` are wrong.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.settings = parse_monitor(trainer.config["optim"])
        self.validation = DenoisingValidation(trainer, self.settings)
        self._last: float | None = None  # when the step before ended
        self._seconds = 0.0
        self._counts = torch.zeros(2, dtype=torch.float64)  # structures, atoms

    def step(self, batch: Any) -> None:
        """Count a finished training step on ``batch``, this rank's, and log the speed at times."""
        now = time.perf_counter()
        if self._last is not None:
            self._seconds += now - self._last
            if self.trainer.counts_batch():
                self._counts += torch.tensor([len(batch.natoms), len(batch.pos)])
        self._last = now
        if self.trainer.step % _WINDOW == 0:
            self._log_speed()

    def _log_speed(self) -> None:
        structures, atoms = sum_over_ranks(self._counts.to(self.trainer.device)).tolist()
        seconds, self._seconds = self._seconds, 0.0
        self._counts.zero_()
        if seconds == 0:
            return
        found = {"structures_per_second": structures / seconds, "atoms_per_second": atoms / seconds}
        if self.trainer.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.trainer.device)
            found["gpu_memory_gib"] = peak / 2**30
        self._log(found, "system")

    def gradients(self, terms: dict[str, Tensor]) -> None:
        r"""Log each loss term's share of the gradient, every ``gradients_every`` steps.

        .. math:: |g_t| / \sum_u |g_u|, \qquad g_t = \nabla_\theta L_t

        with theta the parameters of the backbone, which the terms share. Each rank takes the norms
        on its part of the batch, and they are averaged over ranks.

        Args:
            terms: the weighted loss terms by name, before ``backward``; their graph is kept.
        """
        every = self.settings.gradients_every
        if not every or self.trainer.step % every:
            return
        model = self.trainer._unwrapped_model
        backbone = getattr(model, "backbone", model)
        shared = [p for p in backbone.parameters() if p.requires_grad]
        norms = torch.stack([_gradient_norm(term, shared) for term in terms.values()])
        norms = sum_over_ranks(norms) / world_size()
        shares = (norms / norms.sum()).tolist()
        found = {GRADIENT_SHARE + name: share for name, share in zip(terms, shares, strict=True)}
        self._log(found, "train")

    def after_validation(self, split: str) -> None:
        """Measure denoising on a split that was just validated, and draw the figures if due."""
        errors, figures = self.validation(split)
        if errors:
            self._log(errors, split)
            if is_master():
                logging.info(", ".join(f"{name}: {value:.4f}" for name, value in errors.items()))
        log_figures = getattr(self.trainer.logger, "log_figures", None)
        if figures is not None and log_figures is not None:
            try:
                log_figures(figures, self.trainer.step, split)
            except Exception:  # a figure must not stop a run
                logging.exception("The figures of this validation could not be drawn")
        self._last = None  # do not count the validation as training time

    def _log(self, values: dict[str, float], split: str) -> None:
        if self.trainer.logger is not None:
            self.trainer.logger.log(values, step=self.trainer.step, split=split)


def _gradient_norm(term: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """Compute the norm over all parameters; zero for a term that depends on none of them."""
    if not term.requires_grad:
        return term.new_zeros((), dtype=torch.float64)
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    norms = [g.detach().double().norm() for g in gradients if g is not None]
    return torch.stack(norms).norm() if norms else term.new_zeros((), dtype=torch.float64)
