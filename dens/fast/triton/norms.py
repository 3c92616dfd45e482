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
from dens.fast.triton.rotations.blocks import sum_type
from dens.fast.triton.source import launch

ROWS = {"ROWS": 8, "num_warps": 4}  # of a program at a time
ATOM = {"num_warps": 8}
# most programs of a backward pass, about as many as an H100 runs at once
ROW_PROGRAMS, ATOM_PROGRAMS = 1024, 264


@triton.jit
def _normalise(v, exists, EPS: tl.constexpr, C: tl.constexpr, DTYPE: tl.constexpr):
    """Normalise rows; return what divided them, too."""
    centred = tl.where(exists, v - tl.sum(v, 1)[:, None] / C, 0.0)
    eps = tl.full((), EPS, DTYPE)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / C + eps)
    return centred * scale, scale


@triton.jit
def _sum_of_edge(
    x, sources, targets, numbers, source, target, row, channel, n, C: tl.constexpr,
    ELEMENTS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Load rows, and if there are elements the sums with those of their atoms; both elements."""
    exists = (row < n) & (channel < C)
    v = tl.load(x + row * C + channel, mask=exists, other=0.0).to(DTYPE)
    of_source, of_target = row, row
    if ELEMENTS:
        of_source = tl.load(numbers + tl.load(source + row, mask=row < n, other=0))
        of_target = tl.load(numbers + tl.load(target + row, mask=row < n, other=0))
        v += tl.load(sources + of_source * C + channel, mask=exists, other=0.0).to(DTYPE)
        v += tl.load(targets + of_target * C + channel, mask=exists, other=0.0).to(DTYPE)
    return v, of_source, of_target


@triton.jit
def norm_silu(
    x, sources, targets, numbers, source, target, weight, bias, out, n, EPS: tl.constexpr,
    C: tl.constexpr, CHANNELS: tl.constexpr, ELEMENTS: tl.constexpr, ALL: tl.constexpr,
    DTYPE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Normalise and activate some rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, CHANNELS)[None, :]
    exists = (row < n) & (channel < C)
    v, _, _ = _sum_of_edge(
        x, sources, targets, numbers, source, target, row, channel, n, C, ELEMENTS, DTYPE
    )
    normal, _ = _normalise(v, exists, EPS, C, DTYPE)
    w = tl.load(weight + channel, mask=channel < C, other=0.0).to(DTYPE)
    b = tl.load(bias + channel, mask=channel < C, other=0.0).to(DTYPE)
    y = normal * w + b
    tl.store(out + row * C + channel, y * tl.sigmoid(y), mask=exists)


@triton.jit
def norm_silu_grads(
    x, sources, targets, numbers, source, target, weight, bias, grad_out, grad_x, marks, sums, n,
    EPS: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr, ELEMENTS: tl.constexpr,
    ALL: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of some rows, and sum those of the parameters; mark the elements."""
    first = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)[None, :]
    w = tl.load(weight + channel, mask=channel < C, other=0.0).to(DTYPE)
    b = tl.load(bias + channel, mask=channel < C, other=0.0).to(DTYPE)
    of_weight = tl.zeros((ROWS, CHANNELS), dtype=DTYPE)
    of_bias = tl.zeros((ROWS, CHANNELS), dtype=DTYPE)
    for start in range(first * ROWS, n, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        exists = (row < n) & (channel < C)
        v, of_source, of_target = _sum_of_edge(
            x, sources, targets, numbers, source, target, row, channel, n, C, ELEMENTS, DTYPE
        )
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
        if ELEMENTS:
            element = tl.arange(0, ALL)[None, :]
            known = (row < n) & (element < ELEMENTS)
            place = marks + row * 2 * ELEMENTS + element
            tl.store(place, (of_source == element).to(DTYPE), mask=known)
            tl.store(place + ELEMENTS, (of_target == element).to(DTYPE), mask=known)
    column = tl.arange(0, CHANNELS)
    place = sums + first * 2 * C + column
    tl.store(place, tl.sum(of_weight, 0), mask=column < C)
    tl.store(place + C, tl.sum(of_bias, 0), mask=column < C)


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, sources=None, targets=None, *atoms):
        x, elements = x.contiguous(), 0 if sources is None else len(sources)
        of_edges = [x] * 5  # not read if there are no elements
        if elements:
            of_edges = [tensor.contiguous() for tensor in (sources, targets, *atoms)]
        tensors = x, *of_edges, weight, bias
        ctx.save_for_backward(*tensors)
        ctx.sizes = {"ELEMENTS": elements, "ALL": triton.next_power_of_2(max(elements, 1))}
        ctx.sizes |= {**_sizes(x, eps), **ROWS}
        out = torch.empty_like(x, dtype=output_type(x))
        if len(x):
            blocks = (triton.cdiv(len(x), ROWS["ROWS"]),)
            launch(norm_silu, blocks, *tensors, out, len(x), **ctx.sizes)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        saved = ctx.saved_tensors  # once, as activation checkpointing wants
        x, sources, targets, *_, weight, _ = saved
        grad_x, elements = torch.empty_like(x), ctx.sizes["ELEMENTS"]
        marks = x.new_empty(len(x), 2 * elements)
        programs = min(triton.cdiv(len(x), ROWS["ROWS"]), ROW_PROGRAMS)
        sums = x.new_empty(programs, 2, x.shape[1], dtype=getattr(torch, sum_type(x)))
        if programs:
            tensors = *saved, grad_out.contiguous(), grad_x, marks, sums
            launch(norm_silu_grads, (programs,), *tensors, len(x), **ctx.sizes)
        of_weight, of_bias = sums.sum(0).to(weight.dtype)
        grads = grad_x, of_weight, of_bias, None
        if not elements:
            return grads
        # a product, as sums by atomic additions take another order in each run
        of_sources, of_targets = (marks.t() @ grad_x).split(elements)
        tables = of_sources.to(sources.dtype), of_targets.to(targets.dtype)
        return *grads, *tables, None, None, None


@triton.jit
def _scalars(
    x, atom, R: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr, DTYPE: tl.constexpr
):
    """Load l = 0 of an atom, as one row."""
    channel = tl.arange(0, CHANNELS)[None, :]
    return tl.load(x + atom * R * C + channel, mask=channel < C, other=0.0).to(DTYPE)


@triton.jit
def _others(
    x, balance, atom, row, channel, exists, EPS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Load l > 0 of an atom, the shares of its rows in the norm, and the inverse of the norm."""
    v = tl.load(x + (atom * R + row) * C + channel, mask=exists, other=0.0).to(DTYPE)
    share = tl.load(balance + row - 1, mask=(row > 0) & (row < R), other=0.0).to(DTYPE) / C
    eps = tl.full((), EPS, DTYPE)
    return v, share, 1 / tl.sqrt(tl.sum(tl.sum(share * v * v, 1), 0) + eps)


@triton.jit
def degree_norm(
    x, weight_0, bias_0, weight, balance, out, EPS: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr, LMAX: tl.constexpr, RR: tl.constexpr, CHANNELS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Normalise the coefficients of one atom."""
    atom = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)[None, :]
    v0 = _scalars(x, atom, R, C, CHANNELS, DTYPE)
    normal, _ = _normalise(v0, channel < C, EPS, C, DTYPE)
    w0 = tl.load(weight_0 + channel, mask=channel < C, other=0.0).to(DTYPE)
    b0 = tl.load(bias_0 + channel, mask=channel < C, other=0.0).to(DTYPE)
    tl.store(out + atom * R * C + channel, normal * w0 + b0, mask=channel < C)
    row = 1 + tl.arange(0, RR)[:, None]
    degree = tl.sqrt(row + 0.5).to(tl.int32)
    exists = (row < R) & (channel < C)
    v, _, scale = _others(x, balance, atom, row, channel, exists, EPS, R, C, DTYPE)
    w = tl.load(weight + (degree - 1) * C + channel, mask=exists, other=0.0).to(DTYPE)
    tl.store(out + (atom * R + row) * C + channel, v * (scale * w), mask=exists)


@triton.jit
def degree_norm_grads(
    x, weight_0, weight, balance, grad_out, grad_x, sums, n, EPS: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr, LMAX: tl.constexpr, RR: tl.constexpr, CHANNELS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of some atoms, and sum those of the parameters."""
    first = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)[None, :]
    w0 = tl.load(weight_0 + channel, mask=channel < C, other=0.0).to(DTYPE)
    of_w0 = tl.zeros((1, CHANNELS), dtype=DTYPE)
    of_b0 = tl.zeros((1, CHANNELS), dtype=DTYPE)
    row = 1 + tl.arange(0, RR)[:, None]
    degree = tl.sqrt(row + 0.5).to(tl.int32)
    exists = (row < R) & (channel < C)
    of_rows = tl.zeros((RR, CHANNELS), dtype=DTYPE)
    for atom in range(first, n, tl.num_programs(0)):
        v0 = _scalars(x, atom, R, C, CHANNELS, DTYPE)
        normal, scale0 = _normalise(v0, channel < C, EPS, C, DTYPE)
        g0 = _scalars(grad_out, atom, R, C, CHANNELS, DTYPE)
        of_w0 += g0 * normal
        of_b0 += g0
        g0 = g0 * w0
        along = tl.sum(g0 * normal, 1)[:, None] / C
        g0 = scale0 * (g0 - tl.sum(g0, 1)[:, None] / C - normal * along)
        tl.store(grad_x + atom * R * C + channel, g0, mask=channel < C)
        v, share, scale = _others(x, balance, atom, row, channel, exists, EPS, R, C, DTYPE)
        place = (atom * R + row) * C + channel
        g = tl.load(grad_out + place, mask=exists, other=0.0).to(DTYPE) * scale
        of_rows += g * v
        g = g * tl.load(weight + (degree - 1) * C + channel, mask=exists, other=0.0).to(DTYPE)
        along = tl.sum(tl.sum(g * v, 1), 0) * scale * scale
        tl.store(grad_x + place, g - along * share * v, mask=exists)
    place = sums + first * (LMAX + 2) * C
    tl.store(place + channel, of_w0, mask=channel < C)
    tl.store(place + C + channel, of_b0, mask=channel < C)
    column = tl.arange(0, CHANNELS)
    for number in tl.static_range(1, LMAX + 1):
        of_weight = tl.sum(tl.where(degree == number, of_rows, 0.0), 0)
        tl.store(place + (number + 1) * C + column, of_weight, mask=column < C)


class _DegreeNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight_0, bias_0, weight, balance, eps):
        x = x.contiguous()
        ctx.save_for_backward(x, weight_0, weight, balance)
        rows, lmax = x.shape[1], len(weight)
        ctx.sizes = {"R": rows, "LMAX": lmax, "RR": triton.next_power_of_2(rows - 1)}
        ctx.sizes |= {**_sizes(x, eps), **ATOM}
        out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, weight.dtype))
        if len(x):
            launch(degree_norm, (len(x),), x, weight_0, bias_0, weight, balance, out, **ctx.sizes)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        x, weight_0, weight, balance = ctx.saved_tensors
        grad_x, programs = torch.empty_like(x), min(len(x), ATOM_PROGRAMS)
        shape = programs, len(weight) + 2, x.shape[2]
        sums = x.new_empty(shape, dtype=getattr(torch, sum_type(x)))
        if programs:
            tensors = x, weight_0, weight, balance, grad_out.contiguous(), grad_x, sums
            launch(degree_norm_grads, (programs,), *tensors, len(x), **ctx.sizes)
        total = sums.sum(0).to(weight.dtype)
        return grad_x, total[0], total[1], total[2:], None, None


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


def edge_norm_silu(
    x: Tensor, sources: Tensor, targets: Tensor, numbers: Tensor, source: Tensor, target: Tensor,
    weight: Tensor, bias: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """Compute :func:`dens.fast.ops.edge_norm_silu`, in the dtype of matrix products."""
    return _NormSilu.apply(x, weight, bias, eps, sources, targets, numbers, source, target)


def equivariant_layer_norm(
    x: Tensor, weight_0: Tensor, bias_0: Tensor, weight: Tensor, balance: Tensor, eps: float
) -> Tensor:
    """Compute :func:`dens.fast.ops.equivariant_layer_norm`."""
    return _DegreeNorm.apply(x, weight_0, bias_0, weight, balance, eps)
