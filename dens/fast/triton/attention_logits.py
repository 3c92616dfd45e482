"""Attention logits of edges from their hidden scalars, one kernel for each direction.

The backward pass computes the normalised and activated scalars again.
"""

# no postponed annotations: Triton reads those of its kernels
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from dens.fast.triton.rotations.blocks import sum_type
from dens.fast.triton.source import launch

WARPS = 4
PROGRAMS = 1024  # of the backward pass, each with its own sums of the parameters' gradients


@triton.jit
def forward(
    x, weight, bias, dot, out, n, stride, EPS: tl.constexpr, SLOPE: tl.constexpr, H: tl.constexpr,
    A: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Compute the logits of one edge."""
    e = tl.program_id(0).to(tl.int64)
    eps, slope = tl.full((), EPS, DTYPE), tl.full((), SLOPE, DTYPE)
    head, channel = tl.arange(0, HEADS)[:, None], tl.arange(0, CHANNELS)[None, :]
    exists = (head < H) & (channel < A)
    v = tl.load(x + e * stride + head * A + channel, mask=exists, other=0.0).to(DTYPE)
    centred = tl.where(exists, v - tl.sum(v, 1)[:, None] / A, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / A + eps)
    w = tl.load(weight + channel, mask=channel < A, other=0.0).to(DTYPE)
    b = tl.load(bias + channel, mask=channel < A, other=0.0).to(DTYPE)
    y = centred * scale * w + b
    active = slope * y + (1 - slope) * y * tl.sigmoid(y)
    d = tl.load(dot + head * A + channel, mask=exists, other=0.0).to(DTYPE)
    number = tl.arange(0, HEADS)
    tl.store(out + number * n + e, tl.sum(active * d, 1), mask=number < H)


@triton.jit
def backward(
    x, weight, bias, dot, grad_out, grad_x, sums, n, stride, EPS: tl.constexpr,
    SLOPE: tl.constexpr, H: tl.constexpr, A: tl.constexpr, HEADS: tl.constexpr,
    CHANNELS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of some edges' scalars, and sum those of the parameters."""
    first = tl.program_id(0).to(tl.int64)
    eps, slope = tl.full((), EPS, DTYPE), tl.full((), SLOPE, DTYPE)
    head, channel = tl.arange(0, HEADS)[:, None], tl.arange(0, CHANNELS)[None, :]
    exists = (head < H) & (channel < A)
    w = tl.load(weight + channel, mask=channel < A, other=0.0).to(DTYPE)
    b = tl.load(bias + channel, mask=channel < A, other=0.0).to(DTYPE)
    d = tl.load(dot + head * A + channel, mask=exists, other=0.0).to(DTYPE)
    of_weight = tl.zeros((HEADS, CHANNELS), dtype=DTYPE)
    of_bias = tl.zeros((HEADS, CHANNELS), dtype=DTYPE)
    of_dot = tl.zeros((HEADS, CHANNELS), dtype=DTYPE)
    for e in range(first, n, tl.num_programs(0)):
        v = tl.load(x + e * stride + head * A + channel, mask=exists, other=0.0).to(DTYPE)
        centred = tl.where(exists, v - tl.sum(v, 1)[:, None] / A, 0.0)
        scale = 1 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / A + eps)
        normal = centred * scale
        y = normal * w + b
        s = tl.sigmoid(y)
        g = tl.load(grad_out + head * n + e, mask=head < H, other=0.0).to(DTYPE)
        of_dot += g * (slope * y + (1 - slope) * y * s)
        grad = g * d * (slope + (1 - slope) * s * (1 + y * (1 - s)))
        of_bias += grad
        of_weight += grad * normal
        grad = grad * w
        along = tl.sum(grad * normal, 1)[:, None] / A
        grad = scale * (grad - tl.sum(grad, 1)[:, None] / A - normal * along)
        tl.store(grad_x + e * H * A + head * A + channel, grad, mask=exists)
    place = sums + first * 3 * H * A + head * A + channel
    tl.store(place, of_weight, mask=exists)
    tl.store(place + H * A, of_bias, mask=exists)
    tl.store(place + 2 * H * A, of_dot, mask=exists)


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, dot, eps, slope):
        x = x if x.stride(1) == 1 else x.contiguous()
        ctx.save_for_backward(x, weight, bias, dot)
        ctx.stride, ctx.sizes = x.stride(0), {"EPS": eps, "SLOPE": slope, **_sizes(x, dot)}
        out = x.new_empty(len(dot), len(x), dtype=getattr(torch, sum_type(x)))
        if len(x):
            launch(forward, (len(x),), x, weight, bias, dot, out, len(x), ctx.stride, **ctx.sizes)
        return out.t()  # in memory as fairchem's einsum leaves it, which dropout follows

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        x, weight, bias, dot = ctx.saved_tensors
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        programs, dtype = min(len(x), PROGRAMS), getattr(torch, sum_type(x))
        sums = x.new_empty(programs, 3, *dot.shape, dtype=dtype)
        if programs:
            tensors = x, weight, bias, dot, grad_out.t().contiguous(), grad_x, sums
            launch(backward, (programs,), *tensors, len(x), ctx.stride, **ctx.sizes)
        of_weight, of_bias, of_dot = sums.sum(0)
        grads = of_weight.sum(0).to(weight.dtype), of_bias.sum(0).to(bias.dtype)
        return grad_x, *grads, of_dot.to(dot.dtype), None, None


def _sizes(x: Tensor, dot: Tensor) -> dict:
    heads, channels = dot.shape
    return {
        "H": heads,
        "A": channels,
        "HEADS": triton.next_power_of_2(heads),
        "CHANNELS": triton.next_power_of_2(channels),
        "DTYPE": getattr(tl, sum_type(x)),
        "num_warps": WARPS,
    }


def attention_logits(
    x: Tensor, weight: Tensor, bias: Tensor, dot: Tensor, eps: float, slope: float
) -> Tensor:
    """Compute :func:`dens.fast.ops.attention_logits`."""
    return _Logits.apply(x, weight, bias, dot.contiguous(), eps, slope)
