"""EquiformerV2's graph attention, and its reduced form that predicts vectors.

The functions take the parameters from a module ``p`` that holds them under fairchem's names, so
that checkpoints need no translation: those of ``SO2EquivariantGraphAttention``, and in addition
``layout``, an :class:`OrderMajor`, and the matrices ``to_grid`` and ``from_grid``, (points, rows).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dens.fast.layout import OrderMajor
from dens.fast.ops import (
    EdgeLists,
    attention_logits,
    edge_norm_silu,
    layer_norm_silu,
    rotate_in,
    rotate_out,
    separable_s2,
    softmax_by_target,
)
from dens.fast.products import complex_linear, linear_by_degree


class Edges(NamedTuple):
    """Edges of a batch, with the rotations into their frames."""

    source: Tensor  # (n_edges,) int64
    target: Tensor  # (n_edges,) int64
    distance: Tensor  # (n_edges, n_basis), length in a radial basis
    rotation: Tensor  # (n_edges, rows, (lmax + 1)^2), into the frame of the edge, order-major
    back: Tensor  # rotation times the layout's rescaling; its transpose leads out of the frame
    # the edges of each target and of each source, among all atoms; found where needed if None
    lists: tuple[EdgeLists, EdgeLists] | None = None

    def take(self, numbers: Tensor) -> Edges:
        """Take edges by number: int64."""
        return Edges(*(tensor.index_select(0, numbers) for tensor in self[:-1]))

    def incoming(self, out: slice) -> EdgeLists | None:
        """Return the edges of each target in ``out``."""
        if self.lists is None:
            return None
        order, starts = self.lists[0]
        return EdgeLists(order, starts[out.start : out.stop + 1])

    def back_to(self, degree: int, layout: OrderMajor) -> Edges:
        """Reduce ``back`` to the rows and columns that lead to one degree."""
        columns = slice(degree**2, (degree + 1) ** 2)
        rows = [self.back[:, row, columns] for row in layout.rows_of_degree(degree)]
        return self._replace(back=torch.stack(rows, dim=1))


def attention(p: nn.Module, x: Tensor, numbers: Tensor, edges: Edges, out: slice):
    """Compute messages along the edges, weight them and sum them at their targets.

    Args:
        x: (n_atoms, (lmax + 1)^2, channels), features of all atoms.
        numbers: (n_atoms,), atomic numbers.
        out: the consecutive atoms that are targets.

    Returns:
        (atoms in ``out``, (lmax + 1)^2, out channels).
    """
    hidden, weights, *sums = _hidden(p, x, numbers, edges, out)
    conv, (zero, *others) = p.so2_conv_2, hidden
    messages = [conv.fc_m0(zero)]
    for fc, part in zip(_orders(conv), others, strict=True):
        messages.append(complex_linear(part, fc.weight))
    summed = rotate_out(messages, weights, edges.back, p.layout.degrees_by_order, *sums)
    return linear_by_degree(summed, p.proj.weight, p.proj.bias)


def vector_attention(p: nn.Module, x: Tensor, numbers: Tensor, edges: Edges, out: slice):
    """Compute degree 1 of :func:`attention` only: (atoms in ``out``, 3, out channels).

    A rotation does not mix degrees, so only three rows of the messages are needed.

    Args:
        edges: reduced to degree 1 by :meth:`Edges.back_to`.
    """
    hidden, weights, *sums = _hidden(p, x, numbers, edges, out)
    zero, one = hidden[:2]
    conv = p.so2_conv_2
    width = conv.fc_m0.out_features // p.layout.degrees[0]  # of one degree
    degree_1 = slice(width, 2 * width)  # of l = 0, 1, ...
    messages = [F.linear(zero, conv.fc_m0.weight[degree_1], conv.fc_m0.bias[degree_1])]
    real, imaginary = _orders(conv)[0].weight.chunk(2)  # l = 1, 2, ...
    lowest = torch.cat([real[:width], imaginary[:width]])
    messages.append(complex_linear(one, lowest))
    summed = rotate_out(messages, weights, edges.back, ((1,), (1, 1)), *sums)
    return F.linear(summed, p.proj.weight[1])


def radial_function(p, net: nn.Sequential, numbers: Tensor, edges: Edges) -> Tensor:
    """Compute the radial weights of edges from length and, through embeddings, both elements.

    The first layer acts on the concatenation of the three; each element's share is computed once.
    """
    first, norm, _, *rest = net
    args = norm.weight, norm.bias, norm.eps
    if p.source_embedding is None:
        out = layer_norm_silu(first(edges.distance), *args)
    else:
        embeddings = p.source_embedding, p.target_embedding
        sizes = [edges.distance.shape[1], *(e.embedding_dim for e in embeddings)]
        of_distance, *of_elements = first.weight.split(sizes, dim=1)
        out = F.linear(edges.distance, of_distance, first.bias)
        tables = [F.linear(e.weight, w) for e, w in zip(embeddings, of_elements, strict=True)]
        out = edge_norm_silu(out, *tables, numbers, edges.source, edges.target, *args)
    for linear, norm in zip(rest[:-1:3], rest[1::3], strict=True):
        out = layer_norm_silu(linear(out), norm.weight, norm.bias, norm.eps)
    return rest[-1](out)


def _orders(conv: nn.Module) -> list[nn.Linear]:
    return [order.fc for order in conv.so2_m_conv]


def _hidden(p: nn.Module, x: Tensor, numbers: Tensor, edges: Edges, out: slice):
    """Compute each edge's hidden features, attention weights and target in ``out``.

    Returns:
        also the number of targets, and the edges of each, if they are known.
    """
    conv = p.so2_conv_1
    radial = radial_function(p, conv.rad_func.net, numbers, edges)
    args = edges.source, edges.target, p.layout, edges.lists
    zero, *others = rotate_in(x, radial, edges.rotation, *args)
    channels = p.hidden_channels
    zero = conv.fc_m0(zero)
    n_logits = zero.shape[1] - channels * (p.layout.degrees[0] + 1)
    logits, gate, zero = zero.split([n_logits, channels, channels * p.layout.degrees[0]], dim=1)
    parts = [
        complex_linear(y.flatten(1), fc.weight) for y, fc in zip(others, _orders(conv), strict=True)
    ]
    hidden = separable_s2(gate, [zero, *parts], p.to_grid, p.from_grid, p.layout)
    sums = edges.target - out.start, out.stop - out.start, edges.incoming(out)
    return hidden, _weights(p, logits, *sums), *sums


def _weights(p: nn.Module, logits: Tensor, *sums) -> Tensor:
    """Compute the attention weights: (n_edges, heads)."""
    if isinstance(p.alpha_norm, nn.LayerNorm):
        norm = p.alpha_norm
        args = norm.weight, norm.bias, p.alpha_dot, norm.eps, p.alpha_act.alpha
        dotted = attention_logits(logits, *args)
    else:
        active = p.alpha_act(logits.unflatten(1, p.alpha_dot.shape))
        dotted = torch.einsum("eha,ha->eh", active, p.alpha_dot)
    weights = softmax_by_target(dotted, *sums)
    return weights if p.alpha_dropout is None else p.alpha_dropout(weights)
