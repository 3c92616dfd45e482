"""Split work into chunks that fit a cache; choose the dtype of fused operations under autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps

import torch
from torch import Tensor

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
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) for t in tensors)


def own_type(function: Callable) -> Callable:
    """Disable autocast in the forward or backward of an autograd function.

    It then computes in the dtype of its arguments, which :func:`autocast_type` chose.
    """

    @wraps(function)
    def wrapped(ctx, first: Tensor, *args):
        with torch.autocast(first.device.type, enabled=False):
            return function(ctx, first, *args)

    return wrapped
