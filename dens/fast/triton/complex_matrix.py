"""The real matrix of a complex linear layer, and the gradient of its weight, as one kernel each."""

# no postponed annotations: Triton reads those of its kernels
import torch
import triton
import triton.language as tl
from torch import Tensor

from dens.fast.triton.source import launch

SIZE = {"BN": 1024, "num_warps": 4}


@triton.jit
def join(weight, block, n_out, width, BN: tl.constexpr):
    """Write [[W_r, -W_i], [W_i, W_r]]."""
    place = tl.program_id(0) * BN + tl.arange(0, BN)
    row, column = place // (2 * width), place % (2 * width)
    exists = row < 2 * n_out
    right = column >= width
    of_weight = tl.where(right, (row + n_out) % (2 * n_out), row)
    value = tl.load(weight + of_weight * width + column % width, mask=exists, other=0.0)
    value = tl.where(right & (row < n_out), -value, value)
    tl.store(block + place, value, mask=exists)


@triton.jit
def add_up(grad_block, grad_weight, n_out, width, BN: tl.constexpr):
    """Add the gradients of the two places of each number of the weight."""
    place = tl.program_id(0) * BN + tl.arange(0, BN)
    row, column = place // width, place % width
    exists = row < 2 * n_out
    other = (row + n_out) % (2 * n_out)
    left = tl.load(grad_block + row * 2 * width + column, mask=exists, other=0.0)
    right = tl.load(grad_block + other * 2 * width + width + column, mask=exists, other=0.0)
    tl.store(grad_weight + place, tl.where(row < n_out, left + right, left - right), mask=exists)


def _launch(kernel, source: Tensor, out: Tensor, n_out: int, width: int) -> Tensor:
    blocks = (triton.cdiv(out.numel(), SIZE["BN"]),)
    launch(kernel, blocks, source, out, n_out, width, **SIZE)
    return out


def join_complex(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Make the real matrix of a complex one: (2 n_out, n) -> (2 n_out, 2 n), in ``dtype``."""
    rows, width = weight.shape
    block = weight.new_empty(rows, 2 * width, dtype=dtype)
    return _launch(join, weight.contiguous(), block, rows // 2, width)


def add_complex(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Add up the gradient of :func:`join_complex`: (2 n_out, 2 n) -> (2 n_out, n), in ``dtype``."""
    rows, width = len(grad), grad.shape[1] // 2
    out = grad.new_empty(rows, width, dtype=dtype)
    return _launch(add_up, grad.contiguous(), out, rows // 2, width)
