"""Work in pieces that fit a cache, and the numeric type of a fused operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps

import torch
from torch import Tensor

# numbers in a temporary: 2 MiB of float32 stay in a cache of a CPU core; a GPU wants few launches
# and has the memory
_CPU, _GPU = 2**19, 2**27


def chunk_size(n: int, numbers_per_row: int, device: torch.device) -> int:
    """Rows of the largest piece of ``n`` rows, for temporaries of ``numbers_per_row`` each."""
    budget = _CPU if device.type == "cpu" else _GPU
    return max(1, min(n, budget // numbers_per_row))


def chunks(n: int, size: int) -> Iterator[tuple[slice, int]]:
    """The pieces, each as a slice and its length."""
    for start in range(0, n, size):
        stop = min(start + size, n)
        yield slice(start, stop), stop - start


def autocast_type(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the type of matrix products: autocast's where it is on, else their own."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) for t in tensors)


def own_type(function: Callable) -> Callable:
    """For a forward or backward of an autograd function: no autocast within, forward or backward.

    The types are those of the arguments, which :func:`autocast_type` chose.
    """

    @wraps(function)
    def wrapped(ctx, first: Tensor, *args):
        with torch.autocast(first.device.type, enabled=False):
            return function(ctx, first, *args)

    return wrapped
