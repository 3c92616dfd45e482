"""Correct gradients of EquiformerV2 under graph parallelism.

In fairchem 1.10 the attention of each rank gathers the features of all atoms, but its backward pass
loses the gradient of messages to atoms of other ranks. :func:`sum_shared_gradients` makes it use
fairchem's gather that sums gradients over ranks. The gathers of the heads stay: after them every
rank computes the same loss.
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
    """Replace the gather of EquiformerV2's attention in this process, for good."""
    transformer_block.gp_utils = _SUMMING
