"""Rotation out of the edges' frames with attention weights and the sum at the targets."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dens.fast.chunks import output_type
from dens.fast.triton.blocks import BlockWriter, per_atom, per_edge, sum_type
from dens.fast.triton.source import compile_kernel


@functools.cache
def kernels(rows: tuple[int, ...], dtype: str) -> tuple:
    """Compile the kernels of :func:`rotate_out`: forward, and gradients."""
    w, n = BlockWriter(rows, dtype), len(rows)
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


class _RotateOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, weights, rotation, target, n_atoms, rows, incoming, dtype):
        values, weights, rotation = values.contiguous(), weights.contiguous(), rotation.contiguous()
        ctx.save_for_backward(values, weights, rotation, target)
        ctx.kernels = kernels(rows, sum_type(values))
        out = values.new_empty(n_atoms, rotation.shape[2], values.shape[2], dtype=dtype)
        sizes = _heads(values, weights)
        per_atom(
            ctx.kernels[0], n_atoms, sizes["C"], values, weights, rotation, *incoming, out, **sizes
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        values, weights, rotation, target = ctx.saved_tensors
        grad_values, sizes = torch.empty_like(values), _heads(values, weights)
        dots = values.new_empty(len(values), sizes["C"], dtype=getattr(torch, sum_type(values)))
        tensors = values, weights, rotation, target, grad_out.contiguous(), grad_values, dots
        per_edge(ctx.kernels[1], len(values), sizes["C"], *tensors, **sizes)
        grad_weights = dots.unflatten(1, (weights.shape[1], -1)).sum(2).to(weights.dtype)
        return grad_values, grad_weights, *[None] * 6


def _heads(values: Tensor, weights: Tensor) -> dict[str, int]:
    channels = values.shape[2]
    return {"C": channels, "V": channels // weights.shape[1]}


def rotate_out(values, weights, rotation, target, n_atoms, degrees, incoming):
    """Compute :func:`dens.fast.ops.rotate_out`; sums are in float32, or in float64 of such."""
    dtype = output_type(values)
    return _RotateOut.apply(values, weights, rotation, target, n_atoms, degrees, incoming, dtype)
