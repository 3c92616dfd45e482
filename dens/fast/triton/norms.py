"""Layer norms, one kernel for each direction: with SiLU, and of coefficients of all degrees.

The backward passes compute the normalised numbers again. Each of their programs takes some rows, or
atoms, and holds its own sums of the parameters' gradients.
"""

# no postponed annotations: Triton reads those of its kernels
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from dens.fast.chunks import output_type
from dens.fast.triton.blocks import sum_type

ROWS = {"ROWS": 8, "num_warps": 4}  # of a program at a time
PROGRAMS = 1024  # of a backward pass


@triton.jit
def _normalise(v, exists, EPS: tl.constexpr, C: tl.constexpr, DTYPE: tl.constexpr):
    """Normalise rows; return what divided them, too."""
    centred = tl.where(exists, v - tl.sum(v, 1)[:, None] / C, 0.0)
    eps = tl.full((), EPS, DTYPE)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / C + eps)
    return centred * scale, scale


@triton.jit
def norm_silu(
    x, weight, bias, out, n, EPS: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr,
    DTYPE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Normalise and activate some rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, CHANNELS)[None, :]
    exists = (row < n) & (channel < C)
    v = tl.load(x + row * C + channel, mask=exists, other=0.0).to(DTYPE)
    normal, _ = _normalise(v, exists, EPS, C, DTYPE)
    w = tl.load(weight + channel, mask=channel < C, other=0.0).to(DTYPE)
    b = tl.load(bias + channel, mask=channel < C, other=0.0).to(DTYPE)
    y = normal * w + b
    tl.store(out + row * C + channel, y * tl.sigmoid(y), mask=exists)


@triton.jit
def norm_silu_grads(
    x, weight, bias, grad_out, grad_x, sums, n, EPS: tl.constexpr, C: tl.constexpr,
    CHANNELS: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of some rows, and sum those of the parameters."""
    first = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)[None, :]
    w = tl.load(weight + channel, mask=channel < C, other=0.0).to(DTYPE)
    b = tl.load(bias + channel, mask=channel < C, other=0.0).to(DTYPE)
    of_weight = tl.zeros((ROWS, CHANNELS), dtype=DTYPE)
    of_bias = tl.zeros((ROWS, CHANNELS), dtype=DTYPE)
    for start in range(first * ROWS, n, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        exists = (row < n) & (channel < C)
        v = tl.load(x + row * C + channel, mask=exists, other=0.0).to(DTYPE)
        normal, scale = _normalise(v, exists, EPS, C, DTYPE)
        y = normal * w + b
        s = tl.sigmoid(y)
        grad = tl.load(grad_out + row * C + channel, mask=exists, other=0.0).to(DTYPE)
        grad = grad * s * (1 + y * (1 - s))
        of_bias += grad
        of_weight += grad * normal
        grad = grad * w
        along = tl.sum(grad * normal, 1)[:, None] / C
        grad = scale * (grad - tl.sum(grad, 1)[:, None] / C - normal * along)
        tl.store(grad_x + row * C + channel, grad, mask=exists)
    column = tl.arange(0, CHANNELS)
    place = sums + first * 2 * C + column
    tl.store(place, tl.sum(of_weight, 0), mask=column < C)
    tl.store(place + C, tl.sum(of_bias, 0), mask=column < C)


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        x = x.contiguous()
        ctx.save_for_backward(x, weight, bias)
        ctx.sizes = {**_sizes(x, eps), **ROWS}
        out = torch.empty_like(x, dtype=output_type(x))
        if len(x):
            blocks = (triton.cdiv(len(x), ROWS["ROWS"]),)
            norm_silu[blocks](x, weight, bias, out, len(x), **ctx.sizes)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        x, weight, bias = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        programs = min(triton.cdiv(len(x), ROWS["ROWS"]), PROGRAMS)
        sums = x.new_empty(programs, 2, x.shape[1], dtype=getattr(torch, sum_type(x)))
        if programs:
            tensors = x, weight, bias, grad_out.contiguous(), grad_x, sums
            norm_silu_grads[(programs,)](*tensors, len(x), **ctx.sizes)
        of_weight, of_bias = sums.sum(0).to(weight.dtype)
        return grad_x, of_weight, of_bias, None


def _sizes(x: Tensor, eps: float) -> dict:
    channels = x.shape[-1]
    return {
        "EPS": eps,
        "C": channels,
        "CHANNELS": triton.next_power_of_2(channels),
        "DTYPE": getattr(tl, sum_type(x)),
    }


def layer_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute :func:`dens.fast.ops.layer_norm_silu`, in the dtype of matrix products."""
    return _NormSilu.apply(x, weight, bias, eps)
