"""Split work into chunks that fit a cache; choose the dtype of fused operations under autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# numbers in a temporary: 2 MiB of float32 stay in a cache of a CPU core; a GPU wants few launches
# and has the memory
_CPU, _GPU = 2**19, 2**27


def chunk_size(n: int, numbers_per_row: int, device: torch.device) -> int:
    """Return the rows of the largest chunk, for temporaries of ``numbers_per_row`` each."""
    budget = _CPU if device.type == "cpu" else _GPU
    return max(1, min(n, budget // numbers_per_row))


def chunks(n: int, size: int) -> Iterator[tuple[slice, int]]:
    """Yield the chunks of ``n`` rows, each as a slice and its length."""
    for start in range(0, n, size):
        stop = min(start + size, n)
        yield slice(start, stop), stop - start


def autocast_type(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast tensors to the dtype of matrix products: autocast's if it is on, else their own."""
    if not torch.is_autocast_enabled(tensors[0].device.type):
        return tensors
    return tuple(t.to(output_type(t)) for t in tensors)


def output_type(x: Tensor) -> torch.dtype:
    """Choose the dtype of a matrix product of a tensor: autocast's if it is on, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class FusedFunction(torch.autograd.Function):
    """Autograd function that computes in the dtype of its arguments, without autocast.

    :func:`autocast_type` chooses that dtype. The backward pass itself has no derivative.
    """

    def __init_subclass__(cls) -> None:
        cls.forward = staticmethod(_without_autocast(cls.forward))
        cls.backward = staticmethod(once_differentiable(_without_autocast(cls.backward)))


def _without_autocast(function: Callable) -> Callable:
    def run(ctx, first: Tensor, *args):
        with torch.autocast(first.device.type, enabled=False):
            return function(ctx, first, *args)

    return run
