"""Plain forms of the operations in :mod:`dens.fast.ops`, against which every backend is tested."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dens.fast.layout import OrderMajor


def separable_s2(
    gate: Tensor, x: Sequence[Tensor], to_grid: Tensor, from_grid: Tensor, layout: OrderMajor
) -> tuple[Tensor, ...]:
    """Activate every point of the grid, and the gate."""
    joined = torch.cat(list(x), dim=1).unflatten(1, (len(layout.rows), -1))
    grid = F.silu(torch.einsum("pr,nrc->npc", to_grid, joined))
    y = torch.einsum("pr,npc->nrc", from_grid, grid)
    y = torch.cat([F.silu(gate)[:, None], y[:, 1:]], dim=1)
    return tuple(part.flatten(1) for part in y.split(layout.sizes, dim=1))


def grid_mlp(x: Tensor, weight: Tensor, to_grid: Tensor, from_grid: Tensor) -> Tensor:
    """Apply SiLU, a linear layer and SiLU to every point of the grid."""
    grid = F.silu(F.linear(F.silu(torch.einsum("pr,nrc->npc", to_grid, x)), weight))
    y = torch.einsum("pr,npc->nrc", from_grid, grid)
    return torch.cat([torch.zeros_like(y[:, :1]), y[:, 1:]], dim=1)


def rotate_in(
    x: Tensor, radial: Tensor, rotation: Tensor, source: Tensor, target: Tensor, layout: OrderMajor
) -> tuple[Tensor, ...]:
    """Rotate both atoms' features into the edge's frame, and multiply by radial weights."""
    rotated = torch.bmm(rotation, torch.cat([x[source], x[target]], dim=2))
    outs, width = [], rotated.shape[2]
    weights = radial.split([count * width for count in layout.degrees], dim=1)
    for m, (part, weight) in enumerate(zip(rotated.split(layout.sizes, 1), weights, strict=True)):
        out = part.unflatten(1, (2 if m else 1, -1)).flatten(2) * weight[:, None]
        outs.append(out if m else out[:, 0])
    return tuple(outs)


def rotate_out(
    values: Sequence[Tensor],
    weights: Tensor,
    rotation: Tensor,
    degrees: tuple[tuple[int, ...], ...],
    target: Tensor,
    n_atoms: int,
) -> Tensor:
    """Rotate weighted messages out of the edges' frames, and sum them at the targets."""
    joined = torch.cat(list(values), dim=1).unflatten(1, (rotation.shape[1], -1))
    weighted = joined.unflatten(2, (weights.shape[1], -1)) * weights[:, None, :, None]
    messages = torch.bmm(rotation.transpose(1, 2), weighted.flatten(2))
    return messages.new_zeros(n_atoms, *messages.shape[1:]).index_add(0, target, messages)


def attention_logits(
    x: Tensor, weight: Tensor, bias: Tensor, dot: Tensor, eps: float, slope: float
) -> Tensor:
    """Normalise and activate each head's scalars, and multiply them with the head's vector."""
    y = F.layer_norm(x.unflatten(1, dot.shape), weight.shape, weight, bias, eps)
    return ((slope * y + (1 - slope) * y * torch.sigmoid(y)) * dot).sum(2)


def softmax_by_target(logits: Tensor, target: Tensor, n_atoms: int) -> Tensor:
    """Apply softmax to the edges of one target after another."""
    out = torch.zeros_like(logits)
    for atom in range(n_atoms):
        mine = (target == atom).nonzero()[:, 0]
        out = out.index_put((mine,), logits[mine].softmax(0))
    return out


def layer_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise each row, and apply SiLU."""
    centred = x - x.mean(1, keepdim=True)
    normal = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()
    return F.silu(normal * weight + bias)


def edge_norm_silu(
    x: Tensor, sources: Tensor, targets: Tensor, numbers: Tensor, source: Tensor, target: Tensor,
    weight: Tensor, bias: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """Add the rows of both atoms' elements, normalise, and apply SiLU."""
    total = x + sources[numbers[source]] + targets[numbers[target]]
    return layer_norm_silu(total, weight, bias, eps)


def equivariant_layer_norm(
    x: Tensor, weight_0: Tensor, bias_0: Tensor, weight: Tensor, balance: Tensor, eps: float
) -> Tensor:
    """Normalise l = 0, and the degrees above it by the mean of their mean squares."""
    parts = x.split([2 * degree + 1 for degree in range(len(weight) + 1)], dim=1)
    norm = sum(part.square().mean((1, 2)) for part in parts[1:]) / len(weight)
    scale = (norm + eps).pow(-0.5)[:, None, None]
    y = [part * scale * w for part, w in zip(parts[1:], weight, strict=True)]
    return torch.cat([F.layer_norm(parts[0], weight_0.shape, weight_0, bias_0, eps), *y], dim=1)
