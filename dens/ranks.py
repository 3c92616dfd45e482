"""Collectives over the ranks of a distributed run; a single process counts as one rank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if _distributed() else 1


def is_master() -> bool:
    """Return whether this is the rank that logs and writes files."""
    return not _distributed() or dist.get_rank() == 0


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def gather_objects(value: Any) -> list[Any]:
    """Gather the ``value`` of each rank on the master, in the order of ranks.

    Other ranks get an empty list. Every rank must call it.
    """
    if world_size() == 1:
        return [value]
    gathered = [None] * world_size() if is_master() else None
    dist.gather_object(value, gathered)
    return gathered or []


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum ``values`` elementwise over ranks, without a graph.

    Every rank must call it, with the same shape and dtype, in the same order as other collectives.
    A tensor of the host is summed on the GPU where ranks talk by NCCL, and comes back.
    """
    total = values.detach().clone()
    if world_size() == 1:
        return total
    if total.device.type == "cpu" and dist.get_backend() == "nccl":
        total = total.cuda()
    dist.all_reduce(total)
    return total.to(values.device)


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    r"""Compute the mean over the elements of all ranks from the sum on this rank.

    .. math:: \frac{W}{\sum_r n_r}\, t, \qquad W \text{ ranks}

    DDP averages gradients over ranks, so the factor W gives the gradients of the global mean,
    however the elements are distributed. Zero if no rank has an element.

    Args:
        total: sums on this rank, with their graph.
        count: number of elements of each sum, over all ranks (:func:`sum_over_ranks`).
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
    """Return a zero to add to the loss, which gives ``parameters`` a gradient of exactly zero.

    For modules that did not run: every parameter then has a gradient on every rank, as DDP
    expects, and weight decay and momentum treat clean and corrupted steps alike.
    """
    parameters = [p for p in parameters if p.requires_grad]
    return _ZeroGradient.apply(*parameters) if parameters else 0.0
