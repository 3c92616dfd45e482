"""Softmax over the edges into each atom, one kernel for each direction."""

# no postponed annotations: Triton reads those of its kernels
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from dens.fast.triton.rotations.blocks import sum_type
from dens.fast.triton.source import launch

EDGES = 32  # of an atom at once


@triton.jit
def forward(
    logits, order, starts, out, along_edges, along_heads,
    H: tl.constexpr, HEADS: tl.constexpr, EDGES: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Write the weights of the edges of one atom."""
    atom = tl.program_id(0)
    head, number = tl.arange(0, HEADS)[None, :], tl.arange(0, EDGES)[:, None]
    first, last = tl.load(starts + atom), tl.load(starts + atom + 1)
    largest = tl.full((1, HEADS), float("-inf"), DTYPE)
    total = tl.zeros((1, HEADS), DTYPE)
    for start in range(first, last, EDGES):
        exists = (start + number < last) & (head < H)
        e = tl.load(order + start + number, mask=start + number < last, other=0)
        place = e * along_edges + head * along_heads
        x = tl.load(logits + place, mask=exists, other=float("-inf")).to(DTYPE)
        now = tl.maximum(largest, tl.max(x, 0)[None, :])
        now = tl.where(head < H, now, 0.0)
        total = total * tl.exp(largest - now) + tl.sum(tl.exp(x - now), 0)[None, :]
        largest = now
    for start in range(first, last, EDGES):
        exists = (start + number < last) & (head < H)
        e = tl.load(order + start + number, mask=start + number < last, other=0)
        place = e * along_edges + head * along_heads
        x = tl.load(logits + place, mask=exists, other=0.0).to(DTYPE)
        tl.store(out + place, tl.exp(x - largest) / total, mask=exists)


@triton.jit
def backward(
    weights, grad, order, starts, grad_logits, along_edges, along_heads, grad_edges, grad_heads,
    H: tl.constexpr, HEADS: tl.constexpr, EDGES: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the edges of one atom."""
    atom = tl.program_id(0)
    head, number = tl.arange(0, HEADS)[None, :], tl.arange(0, EDGES)[:, None]
    first, last = tl.load(starts + atom), tl.load(starts + atom + 1)
    along = tl.zeros((1, HEADS), DTYPE)
    for start in range(first, last, EDGES):
        exists = (start + number < last) & (head < H)
        e = tl.load(order + start + number, mask=start + number < last, other=0)
        w = tl.load(weights + e * along_edges + head * along_heads, mask=exists, other=0.0)
        g = tl.load(grad + e * grad_edges + head * grad_heads, mask=exists, other=0.0)
        along += tl.sum(w.to(DTYPE) * g.to(DTYPE), 0)[None, :]
    for start in range(first, last, EDGES):
        exists = (start + number < last) & (head < H)
        e = tl.load(order + start + number, mask=start + number < last, other=0)
        place = e * along_edges + head * along_heads
        w = tl.load(weights + place, mask=exists, other=0.0).to(DTYPE)
        g = tl.load(grad + e * grad_edges + head * grad_heads, mask=exists, other=0.0).to(DTYPE)
        tl.store(grad_logits + place, w * (g - along), mask=exists)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, order, starts):
        weights, atoms = torch.empty_like(logits), len(starts) - 1
        ctx.save_for_backward(weights, order, starts)
        if atoms and logits.numel():
            tensors = logits, order, starts, weights
            launch(forward, (atoms,), *tensors, *logits.stride(), **_sizes(logits))
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weights, order, starts = ctx.saved_tensors
        grad_logits, atoms = torch.empty_like(weights), len(starts) - 1
        if atoms and weights.numel():
            tensors = weights, grad, order, starts, grad_logits
            strides = *weights.stride(), *grad.stride()
            launch(backward, (atoms,), *tensors, *strides, **_sizes(weights))
        return grad_logits, None, None


def _sizes(x: Tensor) -> dict:
    heads = x.shape[1]
    sizes = {"H": heads, "HEADS": triton.next_power_of_2(heads), "EDGES": EDGES}
    return {**sizes, "DTYPE": getattr(tl, sum_type(x)), "num_warps": 1}


def softmax_by_target(logits: Tensor, incoming: tuple[Tensor, Tensor]) -> Tensor:
    """Compute :func:`dens.fast.ops.softmax_by_target`; sums are in float32, or float64."""
    return _Softmax.apply(logits, *incoming)
