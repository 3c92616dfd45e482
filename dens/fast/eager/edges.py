"""Rotate features of atoms into the frames of edges and back, and weight them."""

from __future__ import annotations

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
    values: Tensor, weights: Tensor, rotation: Tensor, target: Tensor, n_atoms: int
) -> Tensor:
    """Compute :func:`dens.fast.ops.rotate_out` for joined orders: (n_edges, rows, channels)."""
    values, weights, rotation = autocast_type(values, weights, rotation)
    return _RotateOut.apply(values, weights, rotation, target, n_atoms)


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
    def forward(ctx, values, weights, rotation, target, n_atoms):
        ctx.save_for_backward(values, weights, rotation, target)
        values, n_out = values.contiguous(), rotation.shape[2]
        out = values.new_zeros(n_atoms, n_out, values.shape[2])
        weighted, message = _buffers(values, len(values), values.shape[2], values.shape[1], n_out)
        for piece, n in chunks(len(target), len(message)):
            torch.mul(values[piece], _of_features(weights[piece], values), out=weighted[:n])
            torch.bmm(rotation[piece].transpose(1, 2), weighted[:n], out=message[:n])
            _add_rows(out, target[piece], message[:n])
        return out

    def backward(ctx, grad_out):
        values, weights, rotation, target = ctx.saved_tensors
        values, grad_out = values.contiguous(), grad_out.contiguous()
        grad_values, grad_weights = torch.empty_like(values), torch.empty_like(weights)
        weighted, message = _buffers(values, len(values), values.shape[2], *rotation.shape[1:])
        for piece, n in chunks(len(target), len(message)):
            torch.index_select(grad_out, 0, target[piece], out=message[:n])
            grads = torch.bmm(rotation[piece], message[:n], out=weighted[:n])
            of_features = (grads * values[piece]).sum(dim=1)
            torch.sum(of_features.view(n, weights.shape[1], -1), dim=2, out=grad_weights[piece])
            torch.mul(grads, _of_features(weights[piece], values), out=grad_values[piece])
        return grad_values, grad_weights, None, None, None


def _of_features(weights: Tensor, values: Tensor) -> Tensor:
    """Repeat weights as contiguous (n, 1, heads * channels): few channels multiply slowly."""
    return weights.repeat_interleave(values.shape[2] // weights.shape[1], dim=1)[:, None]
