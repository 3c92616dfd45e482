"""Gradients of EquiformerV2 under graph parallelism.

In fairchem 1.10 each rank's attention gathers the features of all atoms, but its backward pass
keeps the part of the gradient that this rank's edges contribute: messages to the atoms of other
ranks are lost. :func:`sum_shared_gradients` makes the attention use fairchem's own gather that sums
over ranks; the heads' gathers, after which every rank computes the same loss, stay as they are.
"""

from __future__ import annotations

from types import SimpleNamespace

from fairchem.core.common import gp_utils
from fairchem.core.models.equiformer_v2 import transformer_block

_SUMMING = SimpleNamespace(
    initialized=gp_utils.initialized,
    gather_from_model_parallel_region=gp_utils.gather_from_model_parallel_region_sum_grad,
)


def sum_shared_gradients() -> None:
    """Exchange the gather of EquiformerV2's attention, in this process."""
    transformer_block.gp_utils = _SUMMING
