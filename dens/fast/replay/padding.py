"""Padding of a batch's graph to one of few sizes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def padded_size(n: int) -> int:
    """Return the next of eight sizes between a power of two and the next, multiples of 16."""
    step = max(16, 2 ** (n.bit_length() - 4))
    return -(-n // step) * step


def pad_rows(tensor: Tensor, size: int) -> Tensor:
    """Append rows of zeros up to ``size`` rows."""
    return F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, size - len(tensor)))


def pad_edges(edge_index: Tensor, n_atoms: int, size: int, n_padded: int) -> Tensor:
    """Append edges among the atoms that were appended, each to itself, to all as evenly as can be.

    Args:
        edge_index: (2, n_edges) int64, sorted by target.
        n_atoms, n_padded: atoms before and after, at least one more.
        size: number of edges afterwards.

    Returns:
        (2, size) int64, sorted by target.
    """
    extra = size - edge_index.shape[1]
    numbers = torch.arange(extra, device=edge_index.device)
    atoms = n_atoms + numbers * (n_padded - n_atoms) // max(extra, 1)
    return torch.cat([edge_index, atoms.expand(2, -1)], dim=1)
