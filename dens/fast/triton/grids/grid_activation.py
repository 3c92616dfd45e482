"""Separable S2 activation as one kernel for each direction; the grid stays in registers.

The backward pass computes the grid again.
"""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from dens.fast.layout import OrderMajor
from dens.fast.triton.grids.writer import GridWriter, slope, tables
from dens.fast.triton.source import launch

# columns of a program and its warps
FORWARD = {"BN": 256, "num_warps": 4}
BACKWARD = {"BN": 128, "num_warps": 4}


class _Writer(GridWriter):
    """Writer for the features of edges, in a tensor for each order."""

    def __init__(self, layout: OrderMajor, side: int, dtype: str) -> None:
        super().__init__([m for _, m in layout.coefficients], side, dtype)
        self.sizes = layout.sizes

    def place(self, name: str, row: int) -> str:
        """The address of a row of the column, in the tensor of its order."""
        order = abs(self.orders[row])
        stride = f"{name}_stride" if name == "x" and not order else f"{self.sizes[order]} * C"
        row -= sum(self.sizes[:order])
        return f"{name}{order} + edge * {stride} + {row} * C + channel"

    def load_rows(self, name: str, pointer: str) -> list[str]:
        return [self.load(f"{name}{i}", self.place(pointer, i)) for i in self.rows]

    def store_rows(self, pointer: str, first: int) -> list[str]:
        rows = self.rows[first:]
        return [f"tl.store({self.place(pointer, i)}, t{i}, mask=exists)" for i in rows]

    def names(self, name: str) -> str:
        return ", ".join(f"{name}{m}" for m in range(len(self.sizes)))

    def gate(self) -> list[str]:
        """Load the gate as ``z``, and its sigmoid."""
        return [self.load("z", "gate + edge * gate_stride + channel"), self.sigmoid("z")]


@functools.cache
def kernels(layout: OrderMajor, side: int, dtype: str) -> tuple:
    """Compile the kernels of both directions, with sums in ``dtype`` (float32 or float64)."""
    w = _Writer(layout, side, dtype)
    more = "u, g, gate_stride, x_stride"
    latitude = [*w.table("u"), *w.table("g"), *w.fourier("u", "f", "k")]
    activate = w.longitudes("k", lambda a: [w.sigmoid("v_k"), "r = v_k * s"], summed=True)
    forward = [
        *w.load_rows("f", "x"),
        *w.over_latitudes([*latitude, *activate, *w.add("g", first=1)]),
        *w.store_rows("out", 1),
        *w.gate(),
        f"tl.store({w.place('out', 0)}, z * s, mask=exists)",
    ]
    point = [w.sigmoid("v_k"), f"r = v_w * {slope('v_k')}"]
    derive = w.longitudes("kw", lambda a: point, summed=True)
    backward = [
        *w.load_rows("f", "x"),
        *w.load_rows("d", "grad_out"),
        *w.over_latitudes([*latitude, *w.fourier("g", "d", "w"), *derive, *w.add("u")]),
        *w.store_rows("grad_x", 0),
        *w.gate(),
        f"tl.store(grad_gate + column, d0 * {slope('z')}, mask=exists)",
    ]
    x, out, grads = (w.names(name) for name in ("x", "out", "grad_out"))
    return (
        w.kernel("s2_forward", f"gate, {x}, {out}, {more}", forward),
        w.kernel(
            "s2_backward", f"gate, {x}, {grads}, grad_gate, {w.names('grad_x')}, {more}", backward
        ),
    )


class _SeparableS2(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, g, layout, gate, *x):
        # the first order may be a part of a wider output
        gate, x = _rows(gate), [_rows(x[0]), *(part.contiguous() for part in x[1:])]
        ctx.save_for_backward(u, g, gate, *x)
        ctx.kernels = kernels(layout, len(u), str(u.dtype).removeprefix("torch."))
        outs = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in x]
        _launch(ctx.kernels[0], FORWARD, gate, x[0], gate, *x, *outs, u, g)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outs):
        u, g, gate, *x = ctx.saved_tensors
        grads = [torch.empty_like(v, memory_format=torch.contiguous_format) for v in (gate, *x)]
        tensors = gate, *x, *(grad.contiguous() for grad in grad_outs), *grads
        _launch(ctx.kernels[1], BACKWARD, gate, x[0], *tensors, u, g)
        return None, None, None, *grads


def _rows(x: Tensor) -> Tensor:
    """Return a tensor whose rows are contiguous each."""
    return x if x.stride(1) == 1 else x.contiguous()


def _launch(kernel, how: dict, gate: Tensor, zero: Tensor, *tensors: Tensor) -> None:
    columns = gate.numel()
    if columns:
        blocks = (triton.cdiv(columns, how["BN"]),)
        strides = gate.stride(0), zero.stride(0)
        launch(kernel, blocks, *tensors, *strides, columns, C=gate.shape[1], **how)


def separable_s2(
    gate: Tensor, *x: Tensor, to_grid: Tensor, from_grid: Tensor, layout: OrderMajor
) -> tuple[Tensor, ...]:
    """Compute :func:`dens.fast.ops.separable_s2`; sums are in float32, or in float64 of such."""
    dtype = torch.promote_types(gate.dtype, torch.float32)
    factors = tables(to_grid, from_grid, [m for _, m in layout.coefficients], dtype)
    return _SeparableS2.apply(*factors, layout, gate, *x)
