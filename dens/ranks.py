"""Sums over the ranks of a distributed run; a single process is a run of one rank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_master() -> bool:
    """Whether this is the rank that logs and writes files."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def gather_objects(value: Any) -> list[Any]:
    """Gather every rank's ``value`` on the master, in the order of ranks; others get nothing.

    Every rank must call it.
    """
    if world_size() == 1:
        return [value]
    gathered = [None] * world_size() if is_master() else None
    dist.gather_object(value, gathered)
    return gathered or []


def sum_over_ranks(values: Tensor) -> Tensor:
    """The elementwise sum of all ranks' ``values``, without a graph.

    Every rank must call it, with the same shape and dtype, in the same order as other collectives.
    """
    total = values.detach().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    r"""The mean over all ranks' elements, from this rank's sum and the number of all.

    .. math:: \frac{W}{\sum_r n_r}\, t, \qquad W \text{ ranks}

    DDP averages gradients over ranks, so the factor W makes them those of the global mean,
    however the elements fall onto ranks. No element anywhere gives zero.

    Args:
        total: this rank's sums, with their graph.
        count: the numbers of elements, summed over ranks (:func:`sum_over_ranks`).
    """
    return total * world_size() / count.to(total.device, total.dtype).clamp(min=1)


class _ZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx, grad: Tensor):
        return tuple(torch.zeros_like(p) for p in ctx.saved_tensors)


def zero_gradient(parameters: Iterable[nn.Parameter]) -> Tensor | float:
    """A zero that gives ``parameters`` a gradient of exactly zero.

    Added to the loss where a module did not run: every parameter then has a gradient on every
    rank, as DDP expects, and weight decay and momentum treat clean and corrupted steps alike.
    """
    parameters = [p for p in parameters if p.requires_grad]
    return _ZeroGradient.apply(*parameters) if parameters else 0.0
