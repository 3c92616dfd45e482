"""Sums over the ranks of a distributed run; a single process is a run of one rank."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """The elementwise sum of all ranks' ``values``, without a graph.

    Every rank must call it, with the same shape and dtype, in the same order as other collectives.
    """
    total = values.detach().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total
