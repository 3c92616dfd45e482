"""Rotation out of the edges' frames with attention weights and the sum at the targets."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dens.fast.chunks import autocast_type
from dens.fast.triton.rotations.blocks import BlockWriter, per_atom, per_edge, sum_type
from dens.fast.triton.source import compile_kernel


@functools.cache
def kernels(degrees: tuple[tuple[int, ...], ...], dtype: str) -> tuple:
    """Compile the forward kernel, and that of the gradients, for rows of these degrees."""
    w = BlockWriter(tuple(d for order in degrees for d in order), dtype)
    places = [(m, len(order), i) for m, order in enumerate(degrees) for i in range(len(order))]
    weight = w.load("w", "weights + e * (C // V) + c // V")

    def value(name: str, row: int) -> str:
        order, count, i = places[row]
        return f"{name}{order} + (e * {count} + {i}) * C + c"

    def names(name: str) -> str:
        return ", ".join(f"{name}{m}" for m in range(len(degrees)))

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
    values, grads = names("values"), names("grad_values")
    return (
        compile_kernel(
            "rotate_out", f"{values}, weights, rotation, {lists}, out, {sizes}", forward
        ),
        compile_kernel(
            "rotate_out_grads",
            f"{values}, weights, rotation, target, grad_out, {grads}, dots, {sizes}",
            backward,
        ),
    )


class _RotateOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, rotation, target, n_atoms, degrees, incoming, *values):
        values = [part.contiguous() for part in values]
        weights, rotation = weights.contiguous(), rotation.contiguous()
        ctx.save_for_backward(weights, rotation, target, *values)
        ctx.kernels = kernels(degrees, sum_type(weights))
        ctx.sizes = _sizes(values[0], len(degrees[0]), weights)
        channels = ctx.sizes["C"]
        out = values[0].new_empty(n_atoms, rotation.shape[2], channels)
        tensors = *values, weights, rotation, *incoming, out
        per_atom(ctx.kernels[0], n_atoms, channels, *tensors, **ctx.sizes)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        weights, rotation, target, *values = ctx.saved_tensors
        grads, channels = [torch.empty_like(part) for part in values], ctx.sizes["C"]
        dots = weights.new_empty(len(weights), channels, dtype=getattr(torch, sum_type(weights)))
        tensors = *values, weights, rotation, target, grad_out.contiguous(), *grads, dots
        per_edge(ctx.kernels[1], len(weights), channels, *tensors, **ctx.sizes)
        grad_weights = dots.unflatten(1, (weights.shape[1], -1)).sum(2).to(weights.dtype)
        return grad_weights, *[None] * 5, *grads


def _sizes(zero: Tensor, rows: int, weights: Tensor) -> dict[str, int]:
    channels = zero.shape[1] // rows
    return {"C": channels, "V": channels // weights.shape[1]}


def rotate_out(values, weights, rotation, degrees, target, n_atoms, incoming):
    """Compute :func:`dens.fast.ops.rotate_out`; sums are in float32, or in float64 of such."""
    args = weights, rotation, target, n_atoms, degrees, incoming
    return _RotateOut.apply(*args, *autocast_type(*values))
