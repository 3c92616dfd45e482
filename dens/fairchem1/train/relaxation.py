"""Relaxations with fairchem-core 1.10 that go down where the energy curves down.

fairchem's LBFGS takes every pair of a step s and a change of force y into its model of the
curvature, also those with y·s <= 0, as they occur between minima and with forces that are no exact
gradient. Its model is then not positive definite, and it steps up, and back and forth. Here such
pairs count for nothing, structure by structure.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager
from typing import Any

import torch
from fairchem.core.common.relaxation import ml_relaxation
from fairchem.core.common.relaxation.optimizers.lbfgs_torch import LBFGS
from torch import Tensor

from dens.patching import replaced


class _Positive(deque):
    """The 1 / (y·s) of LBFGS, (n_structures,) for each step; 0, which leaves a pair out, if <= 0.

    Where a structure does not move any more it is infinite, and left out too.
    """

    def append(self, rho: Tensor) -> None:
        super().append(torch.where((rho > 0) & rho.isfinite(), rho, 0))


class SafeLBFGS(LBFGS):
    """fairchem's LBFGS with a model of the curvature that is always positive definite."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rho = _Positive(maxlen=self.memory)


def safe_lbfgs() -> AbstractContextManager[None]:
    """Let fairchem's relaxations use :class:`SafeLBFGS`."""
    return replaced(ml_relaxation, LBFGS=SafeLBFGS)
