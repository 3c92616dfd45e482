"""Pointwise activations on a grid over the sphere, computed in chunks and never stored.

A grid has ten to twenty times as many points as there are coefficients. Both functions here compute
it in small chunks, and again in the backward pass, so that only coefficients are stored.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dens.fast.chunks import FusedFunction, autocast_type, chunk_size, chunks

_silu_backward = torch.ops.aten.silu_backward.grad_input


def separable_s2(gate: Tensor, x: Tensor, to_grid: Tensor, from_grid: Tensor) -> Tensor:
    """Compute :func:`dens.fast.ops.separable_s2` for joined orders: (n, rows, channels)."""
    gate, x, to_grid, from_grid = autocast_type(gate, x, to_grid, from_grid)
    return _SeparableS2.apply(gate, x, to_grid, _without_mean(from_grid))


def grid_mlp(x: Tensor, weight: Tensor, to_grid: Tensor, from_grid: Tensor) -> Tensor:
    """Compute :func:`dens.fast.ops.grid_mlp`."""
    x, weight, to_grid, from_grid = autocast_type(x, weight, to_grid, from_grid)
    return _GridMLP.apply(x, weight, to_grid, _without_mean(from_grid))


def _without_mean(from_grid: Tensor) -> Tensor:
    """Zero the column of l = 0, which is the mean over the sphere."""
    from_grid = from_grid.clone()
    from_grid[:, 0] = 0
    return from_grid


def _scratch(x: Tensor, matrix: Tensor, channels: int, count: int) -> Tensor:
    """Allocate the grids of one chunk of ``x``: (count, size, points, channels)."""
    points = len(matrix)
    size = chunk_size(len(x), count * points * channels, x.device)
    return x.new_empty(count, size, points, channels)


def _apply(matrix: Tensor, x: Tensor, out: Tensor) -> Tensor:
    return torch.bmm(matrix.expand(len(x), *matrix.shape), x, out=out)


class _SeparableS2(FusedFunction):
    def forward(ctx, gate, x, to_grid, from_grid):
        ctx.save_for_backward(gate, x, to_grid, from_grid)
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        (buffer,) = _scratch(x, to_grid, x.shape[-1], 1)
        for piece, n in chunks(len(x), len(buffer)):
            values = _apply(to_grid, x[piece], out=buffer[:n])
            F.silu(values, inplace=True)
            _apply(from_grid.t(), values, out=out[piece])
        out[:, 0] = F.silu(gate)
        return out

    def backward(ctx, grad_out):
        gate, x, to_grid, from_grid = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grad_out[:, 0], gate)
        x, grad_out = x.contiguous(), grad_out.contiguous()
        grad_x = torch.empty_like(x)
        buffers = _scratch(x, to_grid, x.shape[-1], 2)
        for piece, n in chunks(len(x), buffers.shape[1]):
            values = _apply(to_grid, x[piece], out=buffers[0, :n])
            grads = _apply(from_grid, grad_out[piece], out=buffers[1, :n])
            _silu_backward(grads, values, grad_input=grads)
            _apply(to_grid.t(), grads, out=grad_x[piece])
        return grad_gate, grad_x, None, None


class _GridMLP(FusedFunction):
    def forward(ctx, x, weight, to_grid, from_grid):
        ctx.save_for_backward(x, weight, to_grid, from_grid)
        x, (hidden, channels) = x.contiguous(), weight.shape
        out = x.new_empty(*x.shape[:2], hidden)
        buffers = _scratch(x, to_grid, max(weight.shape), 2)
        for piece, n in chunks(len(x), buffers.shape[1]):
            first, second = _view(buffers[0], n, channels), _view(buffers[1], n, hidden)
            F.silu(_apply(to_grid, x[piece], out=first), inplace=True)
            torch.mm(first.flatten(0, 1), weight.t(), out=second.flatten(0, 1))
            F.silu(second, inplace=True)
            _apply(from_grid.t(), second, out=out[piece])
        return out

    def backward(ctx, grad_out):
        x, weight, to_grid, from_grid = ctx.saved_tensors
        x, grad_out, (hidden, channels) = x.contiguous(), grad_out.contiguous(), weight.shape
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        buffers = _scratch(x, to_grid, max(weight.shape), 4)
        for piece, n in chunks(len(x), buffers.shape[1]):
            first, active = (_view(b, n, channels) for b in buffers[:2])
            second, grads = (_view(b, n, hidden) for b in buffers[2:])
            _apply(to_grid, x[piece], out=first)
            torch.ops.aten.silu.out(first, out=active)
            torch.mm(active.flatten(0, 1), weight.t(), out=second.flatten(0, 1))
            _apply(from_grid, grad_out[piece], out=grads)
            _silu_backward(grads, second, grad_input=grads)
            grad_weight.addmm_(grads.flatten(0, 1).t(), active.flatten(0, 1))
            torch.mm(grads.flatten(0, 1), weight, out=active.flatten(0, 1))
            _silu_backward(active, first, grad_input=active)
            _apply(to_grid.t(), active, out=grad_x[piece])
        return grad_x, grad_weight, None, None


def _view(buffer: Tensor, n: int, channels: int) -> Tensor:
    """View the start of a larger buffer as contiguous (n, points, channels)."""
    points = buffer.shape[1]
    return buffer.view(-1)[: n * points * channels].view(n, points, channels)
