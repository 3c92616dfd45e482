"""Reproducible training steps of a fairchem-core 2 unit."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common import distutils, gp_utils

from dens.random import Stream


class SeededSteps:
    """Mixin whose training steps depend on the seed, the rank and the step alone."""

    job_config: Any
    train_progress: Any  # torchtnt's

    @property
    def seed(self) -> int:
        """The seed of the job."""
        return int(self.job_config.get("seed") or 0)

    def begin_step(self) -> None:
        """Seed what the model draws in this step: rolls of edge frames, dropout."""
        step = self.train_progress.num_steps_completed
        generator = Stream.MODEL.generator(self.seed, data_rank(), step)
        torch.manual_seed(generator.initial_seed())


def data_rank() -> int:
    """Return the data-parallel rank: ranks that share a graph share their data."""
    return gp_utils.get_dp_rank() if gp_utils.initialized() else distutils.get_rank()
