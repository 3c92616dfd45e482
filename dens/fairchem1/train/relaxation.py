"""LBFGS for relaxations with fairchem-core 1.10 that never steps uphill.

fairchem's LBFGS uses every pair of a step s and a change of force y in its model of the curvature,
even if y·s <= 0, which occurs between minima and with forces that are no exact gradient. The model
is then not positive definite, and steps go uphill. Here such pairs are ignored in each structure.
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
    """The 1 / (y·s) of LBFGS, (n_structures,) for each step; set to 0 to ignore a pair.

    It is ignored if <= 0, or infinite because the structure has stopped moving.
    """

    def append(self, rho: Tensor) -> None:
        super().append(torch.where((rho > 0) & rho.isfinite(), rho, 0))


class SafeLBFGS(LBFGS):
    """fairchem's LBFGS with a positive definite model of the curvature."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rho = _Positive(maxlen=self.memory)


def safe_lbfgs() -> AbstractContextManager[None]:
    """Use :class:`SafeLBFGS` for fairchem's relaxations in a ``with`` block."""
    return replaced(ml_relaxation, LBFGS=SafeLBFGS)
