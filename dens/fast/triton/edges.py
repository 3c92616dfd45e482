r"""Rotations into and out of the edges' frames as kernels that keep an edge's features in registers.

A rotation does not mix degrees: of its matrix only the block of each degree is read, a fourth
(lmax 4) to a sixth (lmax 6) of the dense product. A thread holds one channel of an edge (or of an
atom, where a kernel sums over its edges one after another, so that no two threads add to one
number). Features of atoms are gathered, and edges' features that a backward pass needs are computed
again, so that only what enters and leaves the linear layers moves through memory.
"""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from dens.fast.chunks import output_type
from dens.fast.layout import OrderMajor
from dens.fast.triton.source import compile_kernel, indented, total

EDGE = {"num_warps": 4}
ATOM = {"num_warps": 4}


class _Writer:
    """Writer of kernels for edges whose rows have the given degrees.

    Columns of the rotation run over the degrees from the lowest to the highest, degree-major.
    """

    def __init__(self, rows: tuple[int, ...], dtype: str) -> None:
        self.rows, self.dtype = rows, dtype
        self.degrees = sorted(set(rows))
        self.lowest = self.degrees[0]
        self.columns = (self.degrees[-1] + 1) ** 2 - self.lowest**2

    def rows_of(self, degree: int) -> list[int]:
        return [i for i, d in enumerate(self.rows) if d == degree]

    def columns_of(self, degree: int) -> range:
        return range(degree**2 - self.lowest**2, (degree + 1) ** 2 - self.lowest**2)

    def load(self, name: str, pointer: str) -> str:
        return f"{name} = tl.load({pointer}, mask=exists, other=0.0).to(tl.{self.dtype})"

    def matrix(self, degree: int) -> list[str]:
        """Load the block of a degree of the rotation of edge ``e``."""
        size = len(self.rows) * self.columns
        return [
            f"d{i}_{k} = tl.load(rotation + e * {size} + {i * self.columns + k}).to(tl.{self.dtype})"
            for i in self.rows_of(degree)
            for k in self.columns_of(degree)
        ]

    def into(self, row: int) -> str:
        """The row of D x."""
        columns = self.columns_of(self.rows[row])
        return total(f"d{row}_{k} * x{k}" for k in columns)

    def out_of(self, degree: int, value: str) -> list[str]:
        """Add the degree of D^T v to the sums ``t``."""
        rows = self.rows_of(degree)
        return [
            f"t{k} += " + total(f"d{i}_{k} * {value}{i}" for i in rows)
            for k in self.columns_of(degree)
        ]

    def zeros(self) -> list[str]:
        return [f"t{k} = tl.zeros((BN,), dtype=tl.{self.dtype})" for k in range(self.columns)]

    def of_edge(self, width: str) -> list[str]:
        return [
            "e = tl.program_id(0).to(tl.int64)",
            "c = tl.program_id(1) * BN + tl.arange(0, BN)",
            f"exists = c < {width}",
        ]

    def of_atom(self) -> list[str]:
        return [
            "atom = tl.program_id(0).to(tl.int64)",
            "c = tl.program_id(1) * BN + tl.arange(0, BN)",
            "exists = c < C",
            *self.zeros(),
        ]

    def over_edges(self, lists: str, body: list[str]) -> list[str]:
        """Loop over the edges of ``atom``."""
        return [
            f"for j in range(tl.load({lists}_starts + atom), tl.load({lists}_starts + atom + 1)):",
            *indented([f"e = tl.load({lists}_order + j)", *body]),
        ]

    def store_sums(self, pointer: str) -> list[str]:
        start = f"{pointer} + atom * {self.columns} * C + c"
        return [f"tl.store({start} + {k} * C, t{k}, mask=exists)" for k in range(self.columns)]


class _WriterIn(_Writer):
    """Writer of the kernels of :func:`rotate_in`: two atoms' channels side by side."""

    def __init__(self, layout: OrderMajor, dtype: str) -> None:
        super().__init__(tuple(degree for degree, _ in layout.coefficients), dtype)
        self.layout, self.orders = layout, [abs(m) for _, m in layout.coefficients]
        self.first_row = [sum(layout.sizes[:m]) for m in range(layout.mmax + 1)]
        self.first_weight = [sum(layout.degrees[:m]) for m in range(layout.mmax + 1)]

    def place(self, name: str, row: int, channel: str = "c") -> str:
        """The address of a row of edge ``e`` in the tensor of its order, of 2 C channels."""
        order = self.orders[row]
        row_in = row - self.first_row[order]
        return f"{name}{order} + (e * {self.layout.sizes[order]} + {row_in}) * (2 * C) + {channel}"

    def weight(self, name: str, degree: int, order: int, channel: str = "c") -> str:
        """The address of a radial weight of edge ``e``."""
        count = sum(self.layout.degrees)
        number = self.first_weight[order] + degree - order
        return f"{name} + (e * {count} + {number}) * (2 * C) + {channel}"

    def orders_of(self, degree: int) -> range:
        return range(min(degree, self.layout.mmax) + 1)

    def gathered(self) -> list[str]:
        return [
            *self.of_edge("2 * C"),
            "atom = tl.where(c < C, tl.load(source + e), tl.load(target + e))",
            f"of_atom = x + atom * {self.columns} * C + c % C",
        ]

    def rotated(self, degree: int) -> list[str]:
        """Rows of a degree of the rotated features: r."""
        columns = self.columns_of(degree)
        return [
            *(self.load(f"x{k}", f"of_atom + {k} * C") for k in columns),
            *self.matrix(degree),
            *(f"r{i} = {self.into(i)}" for i in self.rows_of(degree)),
        ]

    def forward(self) -> list[str]:
        body = self.gathered()
        for degree in self.degrees:
            body += self.rotated(degree)
            body += [
                self.load(f"w{m}", self.weight("radial", degree, m)) for m in self.orders_of(degree)
            ]
            for i in self.rows_of(degree):
                weighted = f"r{i} * w{self.orders[i]}"
                body.append(f"tl.store({self.place('out', i)}, {weighted}, mask=exists)")
        return body

    def grad_radial(self) -> list[str]:
        body = self.gathered()
        for degree in self.degrees:
            body += self.rotated(degree)
            rows = self.rows_of(degree)
            body += [self.load(f"g{i}", self.place("grad", i)) for i in rows]
            for m in self.orders_of(degree):
                grad = total(f"g{i} * r{i}" for i in rows if self.orders[i] == m)
                place = self.weight("grad_radial", degree, m)
                body.append(f"tl.store({place}, {grad}, mask=exists)")
        return body

    def grad_x(self) -> list[str]:
        """Sum over the edges of an atom, as target and as source; ``c`` is its channel."""
        body = self.of_atom()
        for lists, side in (("incoming", "c + C"), ("outgoing", "c")):
            body += self.over_edges(lists, self._add_edge(side))
        return [*body, *self.store_sums("grad_x")]

    def _add_edge(self, channel: str) -> list[str]:
        lines = []
        for degree in self.degrees:
            lines += self.matrix(degree)
            for m in self.orders_of(degree):
                lines.append(self.load(f"w{m}", self.weight("radial", degree, m, channel)))
            for i in self.rows_of(degree):
                lines.append(self.load(f"g{i}", self.place("grad", i, channel)))
                lines.append(f"v{i} = g{i} * w{self.orders[i]}")
            lines += self.out_of(degree, "v")
        return lines

    def names(self, name: str) -> str:
        return ", ".join(f"{name}{m}" for m in range(self.layout.mmax + 1))


@functools.cache
def kernels_in(layout: OrderMajor, dtype: str) -> tuple:
    """Compile the kernels of :func:`rotate_in`: forward, gradients of radial weights and of x."""
    w = _WriterIn(layout, dtype)
    sizes = "C: tl.constexpr, BN: tl.constexpr"
    edge = "rotation, source, target"
    grads = w.names("grad")
    atom = "rotation, incoming_order, incoming_starts, outgoing_order, outgoing_starts"
    return (
        compile_kernel("rotate_in", f"x, radial, {edge}, {w.names('out')}, {sizes}", w.forward()),
        compile_kernel(
            "rotate_in_grad_radial", f"x, {edge}, {grads}, grad_radial, {sizes}", w.grad_radial()
        ),
        compile_kernel("rotate_in_grad_x", f"radial, {atom}, {grads}, grad_x, {sizes}", w.grad_x()),
    )


@functools.cache
def kernels_out(rows: tuple[int, ...], dtype: str) -> tuple:
    """Compile the kernels of :func:`rotate_out`: forward, and gradients."""
    w, n = _Writer(rows, dtype), len(rows)
    weight = w.load("w", "weights + e * (C // V) + c // V")

    def value(name: str, i: int) -> str:
        return f"{name} + (e * {n} + {i}) * C + c"

    one = [weight]
    for degree in w.degrees:
        one += w.matrix(degree)
        for i in w.rows_of(degree):
            one += [w.load(f"v{i}", value("values", i)), f"v{i} = v{i} * w"]
        one += w.out_of(degree, "v")
    forward = [*w.of_atom(), *w.over_edges("incoming", one), *w.store_sums("out")]

    backward = [*w.of_edge("C"), weight, "atom = tl.load(target + e)"]
    backward += [
        f"of_atom = grad_out + atom * {w.columns} * C + c",
        f"dot = tl.zeros((BN,), dtype=tl.{dtype})",
    ]
    for degree in w.degrees:
        backward += [w.load(f"x{k}", f"of_atom + {k} * C") for k in w.columns_of(degree)]
        backward += w.matrix(degree)
        for i in w.rows_of(degree):
            backward += [w.load(f"v{i}", value("values", i)), f"r{i} = {w.into(i)}"]
            backward += [f"dot += v{i} * r{i}"]
            backward += [f"tl.store({value('grad_values', i)}, r{i} * w, mask=exists)"]
    backward.append("tl.store(dots + e * C + c, dot, mask=exists)")

    sizes = "C: tl.constexpr, V: tl.constexpr, BN: tl.constexpr"
    lists = "incoming_order, incoming_starts"
    return (
        compile_kernel("rotate_out", f"values, weights, rotation, {lists}, out, {sizes}", forward),
        compile_kernel(
            "rotate_out_grads",
            f"values, weights, rotation, target, grad_out, grad_values, dots, {sizes}",
            backward,
        ),
    )


class _RotateIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, radial, rotation, source, target, layout, lists, dtype):
        x, radial, rotation = x.contiguous(), radial.contiguous(), rotation.contiguous()
        ctx.save_for_backward(x, radial, rotation, source, target, *lists[0], *lists[1])
        ctx.kernels, width = kernels_in(layout, _sums(x)), 2 * x.shape[2]
        outs = [x.new_empty(len(source), rows, width, dtype=dtype) for rows in layout.sizes]
        _per_edge(
            ctx.kernels[0],
            len(source),
            width,
            x,
            radial,
            rotation,
            source,
            target,
            *outs,
            C=x.shape[2],
        )
        return tuple(
            out.flatten(1) if m == 0 else out.unflatten(1, (2, -1)).flatten(2)
            for m, out in enumerate(outs)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, radial, rotation, source, target, *lists = ctx.saved_tensors
        grads, (_, of_radial, of_x) = [g.contiguous() for g in grads], ctx.kernels
        grad_x, grad_radial, C = torch.empty_like(x), torch.empty_like(radial), x.shape[2]
        _per_edge(
            of_radial, len(source), 2 * C, x, rotation, source, target, *grads, grad_radial, C=C
        )
        _per_atom(of_x, len(x), C, radial, rotation, *lists, *grads, grad_x, C=C)
        return grad_x, grad_radial, *[None] * 6


class _RotateOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, weights, rotation, target, n_atoms, rows, incoming, dtype):
        values, weights, rotation = values.contiguous(), weights.contiguous(), rotation.contiguous()
        ctx.save_for_backward(values, weights, rotation, target)
        ctx.kernels = kernels_out(rows, _sums(values))
        out = values.new_empty(n_atoms, rotation.shape[2], values.shape[2], dtype=dtype)
        sizes = _heads(values, weights)
        _per_atom(
            ctx.kernels[0], n_atoms, sizes["C"], values, weights, rotation, *incoming, out, **sizes
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        values, weights, rotation, target = ctx.saved_tensors
        grad_values, sizes = torch.empty_like(values), _heads(values, weights)
        dots = values.new_empty(len(values), sizes["C"], dtype=getattr(torch, _sums(values)))
        tensors = values, weights, rotation, target, grad_out.contiguous(), grad_values, dots
        _per_edge(ctx.kernels[1], len(values), sizes["C"], *tensors, **sizes)
        grad_weights = dots.unflatten(1, (weights.shape[1], -1)).sum(2).to(weights.dtype)
        return grad_values, grad_weights, *[None] * 6


def _heads(values: Tensor, weights: Tensor) -> dict[str, int]:
    channels = values.shape[2]
    return {"C": channels, "V": channels // weights.shape[1]}


def _sums(x: Tensor) -> str:
    return "float64" if x.dtype == torch.float64 else "float32"


def _per_edge(kernel, n_edges: int, width: int, *tensors: Tensor, **sizes: int) -> None:
    _launch(kernel, n_edges, width, EDGE, tensors, sizes)


def _per_atom(kernel, n_atoms: int, width: int, *tensors: Tensor, **sizes: int) -> None:
    _launch(kernel, n_atoms, width, ATOM, tensors, sizes)


def _launch(kernel, count: int, width: int, how: dict, tensors, sizes) -> None:
    columns = min(triton.next_power_of_2(width), 32 * how["num_warps"])
    if count:
        kernel[(count, triton.cdiv(width, columns))](*tensors, **sizes, BN=columns, **how)


def rotate_in(x, radial, rotation, source, target, layout, lists):
    """Compute :func:`dens.fast.ops.rotate_in`; sums are in float32, or in float64 of such."""
    return _RotateIn.apply(x, radial, rotation, source, target, layout, lists, output_type(radial))


def rotate_out(values, weights, rotation, target, n_atoms, degrees, incoming):
    """Compute :func:`dens.fast.ops.rotate_out`; sums are in float32, or in float64 of such."""
    dtype = output_type(values)
    return _RotateOut.apply(values, weights, rotation, target, n_atoms, degrees, incoming, dtype)
