"""EquiformerV2's feed-forward network on a grid, and its scalar part alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dens.fast.ops import grid_mlp
from dens.fast.products import linear_by_degree


def feed_forward(p: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer by degree, an MLP at each grid point, and a linear layer by degree.

    Args:
        p: holds so3_linear_1, scalar_mlp, grid_mlp, so3_linear_2, to_grid and from_grid.
        x: (n_atoms, (lmax + 1)^2, channels).

    Returns:
        (n_atoms, (lmax + 1)^2, out channels).
    """
    first, _, second, _, third = p.grid_mlp
    hidden = linear_by_degree(x, p.so3_linear_1.weight, p.so3_linear_1.bias)
    # the first and the last layer of the MLP act on coefficients: they commute with the grid
    hidden = grid_mlp(first(hidden), second.weight, p.to_grid, p.from_grid)
    hidden = torch.cat([p.scalar_mlp(x[:, :1]), third(hidden[:, 1:])], dim=1)
    return linear_by_degree(hidden, p.so3_linear_2.weight, p.so3_linear_2.bias)


def scalar_feed_forward(p: nn.Module, x: Tensor) -> Tensor:
    """Compute degree 0 of :func:`feed_forward`, which needs no grid: (n_atoms, 1, out)."""
    return F.linear(p.scalar_mlp(x[:, :1]), p.so3_linear_2.weight[0], p.so3_linear_2.bias)
