"""Log speed, gradient shares and denoising quality during training."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from torch import Tensor, nn

from dens.metrics import GRADIENT_SHARE
from dens.objective import Host
from dens.ranks import is_master, sum_over_ranks, world_size
from dens.runs.monitor.settings import MonitorSettings
from dens.runs.monitor.validation import DenoisingValidation, Schedule

_WINDOW = 10  # steps over which the speed is averaged


class TrainingMonitor:
    """Monitor that measures training and logs it through the trainer's logger.

    Every rank must call every method, since they contain collectives; the master logs.

    Args:
        host: a trainer whose data, model and optimizer are loaded.
        settings: those under ``optim.watch``.
        schedule: which validation structures are denoised, and when figures are due.
        backbone: the part of the model that all loss terms share.
    """

    def __init__(
        self, host: Host, settings: MonitorSettings, schedule: Schedule, backbone: nn.Module
    ) -> None:
        self.host, self.settings, self.backbone = host, settings, backbone
        self.validation = DenoisingValidation(host, settings, schedule)
        self._last: float | None = None  # when the step before ended
        self._seconds = 0.0
        self._counts = torch.zeros(2, dtype=torch.float64)  # structures, atoms

    def step(self, batch: Any, *, counts: bool = True) -> None:
        """Count a finished training step on ``batch``, this rank's, and log the speed at times.

        Args:
            counts: whether this rank counts its batch: one of the ranks that share it does.
        """
        now = time.perf_counter()
        if self._last is not None:
            self._seconds += now - self._last
            if counts:
                self._counts += torch.tensor([len(batch.natoms), len(batch.pos)])
        self._last = now
        if self.host.step % _WINDOW == 0:
            self._log_speed()

    def _log_speed(self) -> None:
        counts = self._counts.to(self.host.device) if world_size() > 1 else self._counts
        structures, atoms = sum_over_ranks(counts).tolist()
        seconds, self._seconds = self._seconds, 0.0
        self._counts.zero_()
        if seconds == 0:
            return
        found = {"structures_per_second": structures / seconds, "atoms_per_second": atoms / seconds}
        if self.host.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.host.device)
            found["gpu_memory_gib"] = peak / 2**30
        self.host.log(found, "system")

    def gradients(self, terms: dict[str, Tensor]) -> None:
        r"""Log each loss term's share of the gradient, every ``gradients_every`` steps.

        .. math:: |g_t| / \sum_u |g_u|, \qquad g_t = \nabla_\theta L_t

        with theta the parameters of the backbone, which the terms share. Each rank takes the norms
        on its part of the batch, and they are averaged over ranks.

        Args:
            terms: the weighted loss terms by name, before ``backward``; their graph is kept.
        """
        every = self.settings.gradients_every
        if not every or self.host.step % every:
            return
        shared = [p for p in self.backbone.parameters() if p.requires_grad]
        norms = torch.stack([_gradient_norm(term, shared) for term in terms.values()])
        norms = sum_over_ranks(norms) / world_size()
        shares = (norms / norms.sum()).tolist()
        found = {GRADIENT_SHARE + name: share for name, share in zip(terms, shares, strict=True)}
        self.host.log(found, "train")

    def after_validation(self, split: str, dataset: Any) -> None:
        """Measure denoising on a split that was just validated, and draw the figures if due."""
        errors, figures = self.validation(dataset)
        if errors:
            self.host.log(errors, split)
            if is_master():
                logging.info(", ".join(f"{name}: {value:.4f}" for name, value in errors.items()))
        if figures is not None:
            try:
                self.host.log_figures(figures, split)
            except Exception:  # a figure must not stop a run
                logging.exception("The figures of this validation could not be drawn")
        self._last = None  # do not count the validation as training time


def _gradient_norm(term: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """Compute the norm over all parameters; zero for a term that depends on none of them."""
    if not term.requires_grad:
        return term.new_zeros((), dtype=torch.float64)
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    norms = [g.detach().double().norm() for g in gradients if g is not None]
    return torch.stack(norms).norm() if norms else term.new_zeros((), dtype=torch.float64)
