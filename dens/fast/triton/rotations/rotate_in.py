"""Rotation into the edges' frames with gather and radial weights, one kernel for each result.

What the backward pass needs of the edges is computed again.
"""

from __future__ import annotations

import functools

import torch
from torch.autograd.function import once_differentiable

from dens.fast.chunks import output_type
from dens.fast.layout import OrderMajor
from dens.fast.triton.rotations.blocks import BlockWriter, per_atom, per_edge, sum_type
from dens.fast.triton.source import compile_kernel, total


class _Writer(BlockWriter):
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
def kernels(layout: OrderMajor, dtype: str) -> tuple:
    """Compile the kernels of :func:`rotate_in`: forward, gradients of radial weights and of x."""
    w = _Writer(layout, dtype)
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


class _RotateIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, radial, rotation, source, target, layout, lists, dtype):
        x, radial, rotation = x.contiguous(), radial.contiguous(), rotation.contiguous()
        ctx.save_for_backward(x, radial, rotation, source, target, *lists[0], *lists[1])
        ctx.kernels, width = kernels(layout, sum_type(x)), 2 * x.shape[2]
        outs = [x.new_empty(len(source), rows, width, dtype=dtype) for rows in layout.sizes]
        per_edge(
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
        per_edge(
            of_radial, len(source), 2 * C, x, rotation, source, target, *grads, grad_radial, C=C
        )
        per_atom(of_x, len(x), C, radial, rotation, *lists, *grads, grad_x, C=C)
        return grad_x, grad_radial, *[None] * 6


def rotate_in(x, radial, rotation, source, target, layout, lists):
    """Compute :func:`dens.fast.ops.rotate_in`; sums are in float32, or in float64 of such."""
    return _RotateIn.apply(x, radial, rotation, source, target, layout, lists, output_type(radial))
