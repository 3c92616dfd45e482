"""Rotate features of atoms into the frames of edges and back, and weight them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dens.fast.chunks import FusedFunction, autocast_type, chunk_size, chunks
from dens.fast.layout import OrderMajor


def rotate_in(
    x: Tensor, radial: Tensor, rotation: Tensor, source: Tensor, target: Tensor, layout: OrderMajor
) -> tuple[Tensor, ...]:
    """Compute :func:`dens.fast.ops.rotate_in`.

    Of all tensors with a row per edge, only the weights are kept for the backward pass.
    """
    x, radial, rotation = autocast_type(x, radial, rotation)
    return _RotateIn.apply(x, radial, rotation, source, target, layout)


def rotate_out(
    values: Sequence[Tensor], weights: Tensor, rotation: Tensor, target: Tensor, n_atoms: int
) -> Tensor:
    """Compute :func:`dens.fast.ops.rotate_out`."""
    weights, rotation, *values = autocast_type(weights, rotation, *values)
    return _RotateOut.apply(weights, rotation, target, n_atoms, *values)


class _RotateIn(FusedFunction):
    def forward(ctx, x, radial, rotation, source, target, layout):
        ctx.save_for_backward(x, radial, rotation, source, target)
        ctx.layout = layout
        x, rows, width = x.contiguous(), rotation.shape[1], 2 * x.shape[2]
        outs = [
            x.new_empty(len(source), 2 if m else 1, degrees * width)
            for m, degrees in enumerate(layout.degrees)
        ]
        both, rotated = _buffers(x, len(source), width, x.shape[1], rows)
        for piece, n in chunks(len(source), len(both)):
            _gather(x, source[piece], target[piece], both[:n])
            torch.bmm(rotation[piece], both[:n], out=rotated[:n])
            for out, part, weight in _orders(outs, rotated[:n], radial[piece], layout):
                torch.mul(part, weight, out=out[piece])
        outs[0] = outs[0].squeeze(1)
        return tuple(outs)

    def backward(ctx, *grad_outs):
        x, radial, rotation, source, target = ctx.saved_tensors
        layout, x = ctx.layout, x.contiguous()
        grads = [g if m else g[:, None] for m, g in enumerate(grad_outs)]
        grad_x, grad_radial = torch.zeros_like(x), torch.empty_like(radial)
        both, rotated = _buffers(x, len(source), 2 * x.shape[2], x.shape[1], rotation.shape[1])
        for piece, n in chunks(len(source), len(both)):
            _gather(x, source[piece], target[piece], both[:n])
            torch.bmm(rotation[piece], both[:n], out=rotated[:n])
            offset = 0
            for grad, part, weight in _orders(grads, rotated[:n], radial[piece], layout):
                end = offset + weight.shape[-1]
                _dot(grad[piece], part, out=grad_radial[piece, offset:end])
                torch.mul(grad[piece], weight, out=part)
                offset = end
            torch.bmm(rotation[piece].transpose(1, 2), rotated[:n], out=both[:n])
            grad_source, grad_target = both[:n].chunk(2, dim=2)
            _add_rows(grad_x, source[piece], grad_source)
            _add_rows(grad_x, target[piece], grad_target)
        return grad_x, grad_radial, None, None, None, None


def _buffers(like: Tensor, n_edges: int, width: int, *rows: int) -> list[Tensor]:
    """Allocate the features of one chunk of edges, in frames with the given numbers of rows."""
    size = chunk_size(n_edges, sum(rows) * width, like.device)
    return [like.new_empty(size, count, width) for count in rows]


def _gather(x: Tensor, source: Tensor, target: Tensor, out: Tensor) -> None:
    """Write the features of both atoms of each edge side by side."""
    of_source, of_target = out.chunk(2, dim=2)
    torch.index_select(x, 0, source, out=of_source)
    torch.index_select(x, 0, target, out=of_target)


def _add_rows(x: Tensor, index: Tensor, rows: Tensor) -> None:
    """Add rows in place: ``x[index] += rows``.

    Along the first dimension index_add_ visits single numbers if rows are not contiguous.
    """
    x[None].index_add_(1, index, rows[None])


def _dot(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Sum products over the signs of m: (n, signs, width) -> (n, width)."""
    torch.mul(a[:, 0], b[:, 0], out=out)
    if a.shape[1] == 2:
        out.addcmul_(a[:, 1], b[:, 1])


def _orders(tensors: list[Tensor], rotated: Tensor, radial: Tensor, layout: OrderMajor):
    """Yield for each order its tensor, its rows of ``rotated`` (n, signs, ...), its weights."""
    parts = rotated.split(layout.sizes, dim=1)
    weights = radial.split([degrees * rotated.shape[2] for degrees in layout.degrees], dim=1)
    for m, (tensor, part, weight) in enumerate(zip(tensors, parts, weights, strict=True)):
        yield tensor, part.view(len(part), 2 if m else 1, weight.shape[1]), weight[:, None]


class _RotateOut(FusedFunction):
    def forward(ctx, weights, rotation, target, n_atoms, *values):
        ctx.save_for_backward(weights, rotation, target, *values)
        values, (rows, n_out) = _by_row(values, rotation), rotation.shape[1:]
        width = values[0].shape[2]
        out = rotation.new_zeros(n_atoms, n_out, width)
        weighted, message = _buffers(out, len(target), width, rows, n_out)
        for piece, n in chunks(len(target), len(message)):
            of_features = _of_features(weights[piece], width)
            for value, part in zip(values, _like(values, weighted[:n]), strict=True):
                torch.mul(value[piece], of_features, out=part)
            torch.bmm(rotation[piece].transpose(1, 2), weighted[:n], out=message[:n])
            _add_rows(out, target[piece], message[:n])
        return out

    def backward(ctx, grad_out):
        weights, rotation, target, *values = ctx.saved_tensors
        grads = [torch.empty_like(v, memory_format=torch.contiguous_format) for v in values]
        values, of_values = _by_row(values, rotation), _by_row(grads, rotation)
        grad_out, grad_weights = grad_out.contiguous(), torch.empty_like(weights)
        (rows, n_out), width = rotation.shape[1:], grad_out.shape[2]
        weighted, products, message = _buffers(grad_out, len(target), width, rows, rows, n_out)
        for piece, n in chunks(len(target), len(message)):
            torch.index_select(grad_out, 0, target[piece], out=message[:n])
            torch.bmm(rotation[piece], message[:n], out=weighted[:n])
            of_features = _of_features(weights[piece], width)
            parts = _like(values, weighted[:n]), _like(values, products[:n])
            for value, of_value, part, product in zip(values, of_values, *parts, strict=True):
                torch.mul(part, value[piece], out=product)
                torch.mul(part, of_features, out=of_value[piece])
            by_head = products[:n].sum(dim=1).view(n, weights.shape[1], -1)
            torch.sum(by_head, dim=2, out=grad_weights[piece])
        return grad_weights, None, None, None, *grads


def _by_row(values: Sequence[Tensor], rotation: Tensor) -> list[Tensor]:
    """View the features of each order as (n_edges, rows of the order, width)."""
    width = sum(value.shape[1] for value in values) // rotation.shape[1]
    return [value.contiguous().unflatten(1, (-1, width)) for value in values]


def _like(values: Sequence[Tensor], joined: Tensor) -> tuple[Tensor, ...]:
    """Split rows as they are split over the orders."""
    return joined.split([value.shape[1] for value in values], dim=1)


def _of_features(weights: Tensor, width: int) -> Tensor:
    """Repeat weights as contiguous (n, 1, width): few channels multiply slowly."""
    return weights.repeat_interleave(width // weights.shape[1], dim=1)[:, None]
