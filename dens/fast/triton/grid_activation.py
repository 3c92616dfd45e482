r"""Separable S2 activation as one kernel for each direction; the grid stays in registers.

The matrix of a grid is a product at each latitude b and longitude a,

.. math:: T_{(b, a), (l, m)} = U_{b, (l, m)}\,S_{a, m}, \qquad S_{a, m} = \cos(m a), \sin(m a).

A column (the coefficients of one channel of one edge) therefore takes at each latitude one product
for each coefficient and 2 mmax + 1 for each longitude, instead of one for each coefficient and grid
point; longitudes a and -a share their even and odd parts. That is 3 (lmax 4) to 4.5 (lmax 6) times
less arithmetic than the matrix products, few enough for float32 without tensor cores. The backward
pass computes the grid again.
"""

from __future__ import annotations

import functools
import math
import weakref

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from dens.fast.layout import OrderMajor
from dens.fast.triton.source import compile_kernel, indented, interpreted, total

# columns of a program and its warps
FORWARD = {"BN": 256, "num_warps": 4}
BACKWARD = {"BN": 128, "num_warps": 4}
_TINY = 1e-5  # relative error of a grid's matrix that counts as rounding


class _Writer:
    """Writer of the kernels of one grid: ``side`` latitudes and ``side`` longitudes."""

    def __init__(self, layout: OrderMajor, side: int, dtype: str) -> None:
        self.orders, self.sizes = [m for _, m in layout.coefficients], layout.sizes
        self.waves = [0, *(s * m for m in range(1, layout.mmax + 1) for s in (1, -1))]
        self.side, self.dtype = side, dtype

    @property
    def rows(self) -> range:
        return range(len(self.orders))

    def number(self, value: float) -> str:
        # a bare literal would be rounded to float32
        return (
            f"tl.full((), {value!r}, tl.{self.dtype})"
            if self.dtype == "float64"
            else f"({value!r})"
        )

    def sigmoid(self, value: str) -> str:
        """Assign the sigmoid of a value to ``s``."""
        if self.dtype == "float64" or interpreted():
            return f"s = tl.sigmoid({value})"
        # two instructions of the special function unit, some 1e-7 off
        power = f"libdevice.fast_expf(tl.minimum(-{value}, 80.0))"
        return f"s = libdevice.fast_dividef(1.0, 1.0 + {power})"

    def place(self, name: str, row: int) -> str:
        """The address of a row of the column, in the tensor of its order."""
        order = abs(self.orders[row])
        stride = f"{name}_stride" if name == "x" and not order else f"{self.sizes[order]} * C"
        row -= sum(self.sizes[:order])
        return f"{name}{order} + edge * {stride} + {row} * C + channel"

    def load(self, name: str, pointer: str) -> list[str]:
        end = f"mask=exists, other=0.0).to(tl.{self.dtype})"
        return [f"{name}{i} = tl.load({self.place(pointer, i)}, {end}" for i in self.rows]

    def store(self, pointer: str, first: int) -> list[str]:
        rows = self.rows[first:]
        return [f"tl.store({self.place(pointer, i)}, t{i}, mask=exists)" for i in rows]

    def names(self, name: str) -> str:
        return ", ".join(f"{name}{m}" for m in range(len(self.sizes)))

    def fourier(self, table: str, values: str, name: str) -> list[str]:
        """Fourier coefficients of a column along a latitude."""
        return [
            f"{name}{_wave(m)} = "
            + total(f"{table}{i} * {values}{i}" for i in self.rows if self.orders[i] == m)
            for m in self.waves
        ]

    def longitudes(self, names: str, point: str) -> list[str]:
        """Sum a function of the grid's values over longitudes, as Fourier coefficients y.

        Args:
            names: one letter for each function on the grid.
            point: the function, of their values, ``v_`` before each letter, and of ``s``, the
                sigmoid of that of the first.
        """
        lines = []
        for a in range(self.side // 2 + 1):
            cos, sin = self._wave_values(a)
            alone = a == 0 or 2 * a == self.side  # a and -a are the same
            for n in names:
                even = total([f"{n}c0", *(f"{c} * {n}c{m}" for m, c in cos.items())])
                lines.append(f"{n}_even = {even}")
                if not alone:
                    lines.append(f"{n}_odd = " + total(f"{s} * {n}s{m}" for m, s in sin.items()))
            if alone:
                lines += [f"v_{n} = {n}_even" for n in names]
                lines += [self.sigmoid(f"v_{names[0]}"), f"even = {point}"]
            else:
                for sign, value in (("+", "plus"), ("-", "minus")):
                    lines += [f"v_{n} = {n}_even {sign} {n}_odd" for n in names]
                    lines += [self.sigmoid(f"v_{names[0]}"), f"{value} = {point}"]
                lines += ["even = plus + minus", "odd = plus - minus"]
            lines.append("yc0 += even")
            lines += [f"yc{m} += {c} * even" for m, c in cos.items()]
            if not alone:
                lines += [f"ys{m} += {s} * odd" for m, s in sin.items()]
        return lines

    def _wave_values(self, a: int) -> tuple[dict[int, str], dict[int, str]]:
        orders = range(1, max(self.waves) + 1)
        angle = 2 * math.pi * a / self.side
        cos, sin = ({m: self.number(f(m * angle)) for m in orders} for f in (math.cos, math.sin))
        return cos, sin

    def kernel(
        self, name: str, pointers: str, loads: list[str], latitude: list[str], ends: list[str]
    ):
        zeros = f"tl.zeros((BN,), dtype=tl.{self.dtype})"
        body = [
            "column = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)",
            "exists = column < n",
            "edge, channel = column // C, column % C",
            *loads,
            *(f"t{i} = {zeros}" for i in self.rows),
            f"for b in range({self.side}):",
        ]
        tables = [
            f"{t}{i} = tl.load({t} + b * {len(self.orders)} + {i})" for t in "ug" for i in self.rows
        ]
        sums = [f"y{_wave(m)} = {zeros}" for m in self.waves]
        body += [*indented([*tables, *sums, *latitude]), *ends]
        strides = "gate_stride, x_stride"
        arguments = f"{pointers}, u, g, n, {strides}, C: tl.constexpr, BN: tl.constexpr"
        return compile_kernel(name, arguments, body)


def _wave(m: int) -> str:
    return f"{'s' if m < 0 else 'c'}{abs(m)}"


@functools.cache
def kernels(layout: OrderMajor, side: int, dtype: str) -> tuple:
    """Compile the kernels of both directions, with sums in ``dtype`` (float32 or float64)."""
    w = _Writer(layout, side, dtype)
    scalar = [
        f"z = tl.load(gate + edge * gate_stride + channel, mask=exists, other=0.0).to(tl.{dtype})",
        w.sigmoid("z"),
    ]
    forward = w.kernel(
        "s2_forward",
        f"gate, {w.names('x')}, {w.names('out')}",
        w.load("f", "x"),
        [
            *w.fourier("u", "f", "k"),
            *w.longitudes("k", "v_k * s"),
            *(f"t{i} += g{i} * y{_wave(w.orders[i])}" for i in w.rows[1:]),
        ],
        [*w.store("out", 1), *scalar, f"tl.store({w.place('out', 0)}, z * s, mask=exists)"],
    )
    slope = "{0} * s * (1 + {1} * (1 - s))"
    backward = w.kernel(
        "s2_backward",
        f"gate, {w.names('x')}, {w.names('grad_out')}, grad_gate, {w.names('grad_x')}",
        w.load("f", "x") + w.load("d", "grad_out"),
        [
            *w.fourier("u", "f", "k"),
            *w.fourier("g", "d", "w"),
            *w.longitudes("kw", slope.format("v_w", "v_k")),
            *(f"t{i} += u{i} * y{_wave(w.orders[i])}" for i in w.rows),
        ],
        [
            *w.store("grad_x", 0),
            *scalar,
            f"tl.store(grad_gate + column, {slope.format('d0', 'z')}, mask=exists)",
        ],
    )
    return forward, backward


def factors(matrix: Tensor, layout: OrderMajor) -> Tensor:
    """Find U of a grid's matrix, (points, rows): (side, rows), in the matrix' dtype.

    Raises:
        ValueError: the matrix is no such product.
    """
    side = math.isqrt(len(matrix))
    whole = matrix.detach().double().cpu()
    if side**2 != len(whole) or whole.shape[1] != len(layout.coefficients):
        raise ValueError(f"no square grid of {layout}: {tuple(whole.shape)}")
    angle = 2 * torch.pi * torch.arange(side, dtype=torch.float64) / side
    waves = [(m * angle).cos() if m >= 0 else (-m * angle).sin() for _, m in layout.coefficients]
    waves = torch.stack(waves, dim=1)
    whole = whole.view(side, side, -1)
    u = torch.einsum("bai, ai -> bi", whole, waves) / waves.square().sum(0)
    if (u[:, None] * waves - whole).abs().max() > _TINY * whole.abs().max():
        raise ValueError("the grid is not a product of latitudes and longitudes")
    return u.to(matrix).contiguous()


class _Tables:
    """Factors of the grids' matrices, found once for each pair of matrices."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int, torch.dtype], tuple] = {}

    def __call__(self, to_grid: Tensor, from_grid: Tensor, layout: OrderMajor, dtype: torch.dtype):
        key = id(to_grid), id(from_grid), dtype
        owners, *found = self.known.get(key, (None,))
        if owners is None or owners[0]() is not to_grid or owners[1]() is not from_grid:
            found = [factors(m, layout).to(dtype) for m in (to_grid, from_grid)]
            found[1][:, 0] = 0  # l = 0, the mean over the sphere, is the gate's
            self.known[key] = ((weakref.ref(to_grid), weakref.ref(from_grid)), *found)
        return found


tables = _Tables()


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
        kernel[blocks](*tensors, columns, gate.stride(0), zero.stride(0), C=gate.shape[1], **how)


def separable_s2(
    gate: Tensor, *x: Tensor, to_grid: Tensor, from_grid: Tensor, layout: OrderMajor
) -> tuple[Tensor, ...]:
    """Compute :func:`dens.fast.ops.separable_s2`; sums are in float32, or in float64 of such."""
    dtype = torch.promote_types(gate.dtype, torch.float32)
    return _SeparableS2.apply(*tables(to_grid, from_grid, layout, dtype), layout, gate, *x)
