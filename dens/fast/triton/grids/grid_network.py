"""Grid MLP: the grid is stored for its matrix products, and made and read by one kernel each.

The backward pass computes the grid again.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
from torch import Tensor

from dens.fast.chunks import FusedFunction
from dens.fast.triton.grids.writer import GridWriter, slope, tables
from dens.fast.triton.source import launch

COLUMNS = {"BN": 128, "num_warps": 4}


class _Writer(GridWriter):
    """Writer for features of atoms, degree-major, and stored grids."""

    def load_rows(self, name: str, pointer: str) -> list[str]:
        start = f"{pointer} + edge * {len(self.orders)} * C + channel"
        return [self.load(f"{name}{i}", f"{start} + {i} * C") for i in self.rows]

    def store_rows(self, pointer: str) -> list[str]:
        start = f"{pointer} + edge * {len(self.orders)} * C + channel"
        return [f"tl.store({start} + {i} * C, t{i}, mask=exists)" for i in self.rows]

    def at(self, pointer: str, a: int) -> str:
        """The address of a point of latitude ``b``."""
        return f"{pointer} + ((edge * {self.side} + b) * {self.side} + {a}) * C + channel"

    def of_latitude(self, name: str, arguments: str, lines: list[str]):
        """Compile a kernel whose programs take one latitude each."""
        return self.kernel(name, arguments, ["b = tl.program_id(1)", *lines])


@functools.cache
def kernels(orders: tuple[int, ...], side: int, dtype: str) -> tuple:
    """Compile the kernels: to a grid and from it, and their backward passes."""
    w = _Writer(orders, side, dtype)

    def activate(a: int) -> list[str]:
        return [w.sigmoid("v_k"), f"tl.store({w.at('grid', a)}, v_k * s, mask=exists)"]

    def read(a: int) -> list[str]:
        return [w.load("z", w.at("grid", a)), w.sigmoid("z"), "r = z * s"]

    def derive(a: int) -> list[str]:
        grad = f"v_w * {slope('z')}"
        store = f"tl.store({w.at('grid', a)}, {grad}, mask=exists)"
        return [w.load("z", w.at("grid", a)), w.sigmoid("z"), store]

    def derive_first(a: int) -> list[str]:
        return [w.load("z", w.at("grid", a)), w.sigmoid("v_k"), f"r = z * {slope('v_k')}"]

    to_x = [*w.load_rows("f", "x"), *w.table("u"), *w.fourier("u", "f", "k")]
    to_grad = [*w.load_rows("f", "x"), *w.table("g"), *w.fourier("g", "f", "w")]
    made = [*to_x, *w.longitudes("k", activate, summed=False)]
    derived = [*to_grad, *w.longitudes("w", derive, summed=False)]
    read_all = w.over_latitudes([*w.table("g"), *w.longitudes("", read, True), *w.add("g")])
    back = [*w.table("u"), *w.fourier("u", "f", "k"), *w.longitudes("k", derive_first, True)]
    back_all = [*w.load_rows("f", "x"), *w.over_latitudes([*back, *w.add("u")])]
    return (
        w.of_latitude("to_grid", "x, grid, u", made),
        w.kernel("from_grid", "grid, out, g", [*read_all, *w.store_rows("out")]),
        w.of_latitude("grad_of_grid", "x, grid, g", derived),
        w.kernel("grad_of_rows", "x, grid, out, u", [*back_all, *w.store_rows("out")]),
    )


class _GridMLP(FusedFunction):
    def forward(ctx, x, weight, u, g, orders):
        x = x.contiguous()
        ctx.save_for_backward(x, weight, u, g)
        ctx.kernels = kernels(orders, len(u), str(u.dtype).removeprefix("torch."))
        second, out = _grids(ctx.kernels, x, weight, u)[1], x.new_empty(*x.shape[:2], len(weight))
        _launch(ctx.kernels[1], out, second, out, g)
        return out

    def backward(ctx, grad_out):
        x, weight, u, g = ctx.saved_tensors
        first, second = _grids(ctx.kernels, x, weight, u)
        grad_out, grad_x = grad_out.contiguous(), torch.empty_like(x)
        _launch(ctx.kernels[2], grad_out, grad_out, second, g, latitudes=len(u))
        grads = second.view(-1, second.shape[2])
        active = first.view(-1, first.shape[2])
        grad_weight = grads.t() @ active
        torch.mm(grads, weight, out=active)
        _launch(ctx.kernels[3], x, x, first, grad_x, u)
        return grad_x, grad_weight, None, None, None


def _grids(kernels: tuple, x: Tensor, weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the grid after the first activation, and before the second."""
    first = x.new_empty(len(x), len(u) ** 2, x.shape[2])
    _launch(kernels[0], x, x, first, u, latitudes=len(u))
    return first, first @ weight.t()


def _launch(kernel, columns_of: Tensor, *tensors: Tensor, latitudes: int = 1) -> None:
    """Launch a kernel over the columns of a tensor, (n, rows, channels)."""
    columns = len(columns_of) * columns_of.shape[2]
    if columns:
        blocks = triton.cdiv(columns, COLUMNS["BN"]), latitudes
        launch(kernel, blocks, *tensors, columns, C=columns_of.shape[2], **COLUMNS)


def grid_mlp(x: Tensor, weight: Tensor, to_grid: Tensor, from_grid: Tensor) -> Tensor:
    """Compute :func:`dens.fast.ops.grid_mlp`; sums are in float32, or in float64 of such."""
    lmax = math.isqrt(x.shape[1]) - 1
    orders = tuple(m for degree in range(lmax + 1) for m in range(-degree, degree + 1))
    dtype = torch.promote_types(x.dtype, torch.float32)
    return _GridMLP.apply(x, weight, *tables(to_grid, from_grid, orders, dtype), orders)
