"""Operations of EquiformerV2 on edges and grids, each by the fastest backend of its device.

The backend ``eager`` (:mod:`dens.fast.eager`) is plain PyTorch, ``triton``
(:mod:`dens.fast.triton`) are kernels for NVIDIA GPUs. :mod:`dens.fast.reference` holds the plain
form of each operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dens.fast.backends import backend_of
from dens.fast.chunks import autocast_type
from dens.fast.eager import activation, edges
from dens.fast.layout import OrderMajor


class EdgeLists(NamedTuple):
    """Edges of each atom: those of atom i are ``order[starts[i] : starts[i + 1]]``."""

    order: Tensor  # (n_edges,) int64
    starts: Tensor  # (n_atoms + 1,) int64


def list_edges(atoms: Tensor, n_atoms: int) -> EdgeLists:
    """List the edges of each atom.

    Args:
        atoms: (n_edges,) int64, an atom of each edge.
    """
    # a GPU sorts in a pass for each byte
    dtype = torch.int16 if n_atoms < 2**15 else torch.int32
    ordered, order = atoms.to(dtype).sort(stable=True)
    numbers = torch.arange(n_atoms + 1, device=atoms.device, dtype=dtype)
    return EdgeLists(order, torch.searchsorted(ordered, numbers))


def separable_s2(
    gate: Tensor,
    x: Sequence[Tensor],
    to_grid: Tensor,
    from_grid: Tensor,
    layout: OrderMajor,
) -> tuple[Tensor, ...]:
    r"""Apply SiLU to a function on the sphere, and to separate scalars in place of its mean.

    .. math:: y_{l>0} = F\,\mathrm{silu}(T x), \qquad y_{0} = \mathrm{silu}(g)

    Args:
        gate: (n, channels), g.
        x: coefficients of each order: (n, layout.sizes[m] * channels), the first being l = 0.
        to_grid: (points, rows), T.
        from_grid: (points, rows), the transpose of F.

    Returns:
        those of y, like ``x``.
    """
    if backend_of(gate.device) == "triton":
        from dens.fast.triton.grids.grid_activation import separable_s2 as fused

        return fused(*autocast_type(gate, *x), to_grid=to_grid, from_grid=from_grid, layout=layout)
    joined = torch.cat(list(x), dim=1).unflatten(1, (len(layout.rows), -1))
    y = activation.separable_s2(gate, joined, to_grid, from_grid)
    return tuple(part.flatten(1) for part in y.split(layout.sizes, dim=1))


def grid_mlp(x: Tensor, weight: Tensor, to_grid: Tensor, from_grid: Tensor) -> Tensor:
    r"""Apply SiLU, a linear layer and SiLU at every point of the sphere.

    .. math:: y = F\,\mathrm{silu}(\mathrm{silu}(T x)\,W^T)

    Linear layers before and after commute with T and F and are cheaper on coefficients.

    Args:
        x: (n, rows, channels), coefficients.
        weight: (hidden, channels), W.
        to_grid: (points, rows), T.
        from_grid: (points, rows), the transpose of F.

    Returns:
        (n, rows, hidden), with row 0 (l = 0) left zero.
    """
    if backend_of(x.device) == "triton":
        from dens.fast.triton.grids.grid_network import grid_mlp as fused

        return fused(*autocast_type(x, weight), to_grid, from_grid)
    return activation.grid_mlp(x, weight, to_grid, from_grid)


def rotate_in(
    x: Tensor,
    radial: Tensor,
    rotation: Tensor,
    source: Tensor,
    target: Tensor,
    layout: OrderMajor,
    lists: tuple[EdgeLists, EdgeLists] | None = None,
) -> tuple[Tensor, ...]:
    r"""Rotate the features of each edge's atoms into its frame, and multiply by radial weights.

    .. math:: y_e = w_e \odot D_e\,[x_{s(e)}, x_{t(e)}]

    Of all tensors with a row per edge, only the weights are kept for the backward pass.

    Args:
        x: (n_atoms, (lmax + 1)^2, channels).
        radial: (n_edges, sum(layout.degrees) * 2 channels), w, for both signs of m.
        rotation: (n_edges, rows, (lmax + 1)^2), D with order-major rows.
        source, target: (n_edges,) int64.
        lists: the edges of each target and of each source, if they are known.

    Returns:
        for m = 0: (n_edges, (lmax + 1) * 2 channels); for each m > 0: (n_edges, 2,
        (lmax - m + 1) * 2 channels), +m before -m.
    """
    if backend_of(x.device) == "triton":
        from dens.fast.triton.rotations.rotate_in import rotate_in as fused

        lists = lists or tuple(list_edges(atoms, len(x)) for atoms in (target, source))
        return fused(x, radial, rotation, source, target, layout, lists)
    return edges.rotate_in(x, radial, rotation, source, target, layout)


def rotate_out(
    values: Sequence[Tensor],
    weights: Tensor,
    rotation: Tensor,
    degrees: tuple[tuple[int, ...], ...],
    target: Tensor,
    n_atoms: int,
    incoming: EdgeLists | None = None,
) -> Tensor:
    r"""Rotate weighted messages out of the edges' frames, and sum them at the target atoms.

    .. math:: y_i = \sum_{e: t(e) = i} D_e^T\,(\alpha_e \odot v_e)

    Args:
        values: v of each order: (n_edges, rows * heads * channels).
        weights: (n_edges, heads), alpha, each for ``channels`` consecutive features.
        rotation: (n_edges, all rows, n_out), D, rescaled, which does not mix degrees.
        degrees: of the rows of each order.
        target: (n_edges,) int64.
        incoming: the edges of each target, if they are known.

    Returns:
        (n_atoms, n_out, heads * channels).
    """
    if backend_of(weights.device) == "triton":
        from dens.fast.triton.rotations.rotate_out import rotate_out as fused

        incoming = incoming or list_edges(target, n_atoms)
        return fused(values, weights, rotation, degrees, target, n_atoms, incoming)
    return edges.rotate_out(values, weights, rotation, target, n_atoms)


def attention_logits(
    x: Tensor, weight: Tensor, bias: Tensor, dot: Tensor, eps: float, slope: float
) -> Tensor:
    r"""Compute attention logits from each head's scalars.

    .. math:: z_{eh} = \sum_a d_{ha}\,\mathrm{act}(\mathrm{norm}(x_{eh})_a), \qquad
        \mathrm{act}(y) = s\,y + (1 - s)\,y\,\sigma(y)

    The norm is a layer norm over the channels a, and act the smooth leaky ReLU of EquiformerV2.

    Args:
        x: (n_edges, heads * channels).
        weight, bias: (channels,), of the norm.
        dot: (heads, channels), d.
        eps: of the norm.
        slope: s, that of act far below zero.

    Returns:
        (n_edges, heads).
    """
    if backend_of(x.device) == "triton":
        from dens.fast.triton.attention_logits import attention_logits as fused

        return fused(x, weight, bias, dot, eps, slope)
    normal = F.layer_norm(x.unflatten(1, dot.shape), weight.shape, weight, bias, eps)
    linear = (1 + slope) / 2 * normal
    active = linear + (1 - slope) / 2 * normal * (2 * torch.sigmoid(normal) - 1)
    # einsum as in fairchem: it sets the order in memory, in which dropout draws its mask
    return torch.einsum("eha,ha->eh", active, dot)


def softmax_by_target(
    logits: Tensor, target: Tensor, n_atoms: int, incoming: EdgeLists | None = None
) -> Tensor:
    """Apply softmax over the edges into each atom: (n_edges, heads) -> (n_edges, heads).

    Args:
        incoming: the edges of each target, if they are known.
    """
    if backend_of(logits.device) == "triton":
        from dens.fast.triton.edge_softmax import softmax_by_target as fused

        return fused(logits, incoming or list_edges(target, n_atoms))
    index = target[:, None].expand_as(logits)
    largest = logits.new_zeros(n_atoms, logits.shape[1]).scatter_reduce(
        0, index, logits.detach(), "amax", include_self=False
    )
    weights = (logits - largest.index_select(0, target)).exp()
    total = weights.new_zeros(n_atoms, logits.shape[1]).index_add(0, target, weights)
    return weights / (total.index_select(0, target) + 1e-16)  # as in torch_geometric


def layer_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    r"""Apply a layer norm and SiLU.

    .. math:: y = \mathrm{silu}(\mathrm{norm}(x))

    Args:
        x: (n, channels).
        weight, bias: (channels,), of the norm.
        eps: of the norm.

    Returns:
        (n, channels); under autocast in float32, or in the dtype of the matrix product after it.
    """
    if backend_of(x.device) == "triton":
        from dens.fast.triton.norms import layer_norm_silu as fused

        return fused(x, weight, bias, eps)
    return F.silu(F.layer_norm(x, weight.shape, weight, bias, eps))


def edge_norm_silu(
    x: Tensor, sources: Tensor, targets: Tensor, numbers: Tensor, source: Tensor, target: Tensor,
    weight: Tensor, bias: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    r"""Add what each edge has of its atoms' elements, and apply a layer norm and SiLU.

    .. math:: y_e = \mathrm{silu}(\mathrm{norm}(x_e + u_{z(s(e))} + v_{z(t(e))}))

    Args:
        x: (n_edges, channels).
        sources, targets: (elements, channels), u and v.
        numbers: (n_atoms,) int64, z, the element of each atom.
        source, target: (n_edges,) int64.

    Further arguments, and the result: those of :func:`layer_norm_silu`.
    """
    if backend_of(x.device) == "triton":
        from dens.fast.triton.norms import edge_norm_silu as fused

        return fused(x, sources, targets, numbers, source, target, weight, bias, eps)
    x = x + sources.index_select(0, numbers[source])
    x = x + targets.index_select(0, numbers[target])
    return layer_norm_silu(x, weight, bias, eps)


def equivariant_layer_norm(
    x: Tensor, weight_0: Tensor, bias_0: Tensor, weight: Tensor, balance: Tensor, eps: float
) -> Tensor:
    r"""Normalise l = 0 by a layer norm, and all l > 0 together by their mean square.

    .. math:: y_{lmc} = w_{lc}\,x_{lmc}\,
        \Big(\frac{1}{C} \sum_{l'm'c'} b_{l'm'}\,x_{l'm'c'}^2 + \epsilon\Big)^{-1/2}

    Args:
        x: (n_atoms, (lmax + 1)^2, channels).
        weight_0, bias_0: (channels,), of the layer norm.
        weight: (lmax, channels), w of l = 1, 2, ...
        balance: ((lmax + 1)^2 - 1, 1), b of the rows l > 0.
        eps: of both norms.

    Returns:
        (n_atoms, (lmax + 1)^2, channels), in the dtype of x or of the weight, the wider one.
    """
    if backend_of(x.device) == "triton":
        from dens.fast.triton.norms import equivariant_layer_norm as fused

        return fused(x, weight_0, bias_0, weight, balance, eps)
    scalars = F.layer_norm(x[:, :1], weight_0.shape, weight_0, bias_0, eps)
    others = x[:, 1:]
    square = (others.square() * balance).sum(1, keepdim=True).mean(2, keepdim=True)
    rows = torch.cat([w.expand(2 * degree + 1, -1) for degree, w in enumerate(weight, 1)])
    scale = (square + eps).rsqrt() * rows
    return torch.cat([scalars, others * scale], dim=1)
