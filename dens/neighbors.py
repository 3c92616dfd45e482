"""The radius graph of structures without periodic boundaries, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

# Å; pairs of atoms closer than this have no edge, as in fairchem's periodic search: the direction
# of such an edge means nothing
MIN_DISTANCE = 0.01
# Å^2; without the strict limit, neighbours that are this close to the first one left out stay in,
# as in fairchem
DEGENERACY_TOLERANCE = 0.01


def radius_graph(
    pos: Tensor,
    batch: Tensor,
    cutoff: float,
    max_neighbors: int | None = None,
    *,
    strict: bool = True,
) -> Tensor:
    r"""The edges between atoms of the same structure that are no further apart than ``cutoff``.

    .. math:: \{(j, i) : j \ne i,\ 0.01\,Å < |p_j - p_i| \le r_{max}\}

    Only distances decide, so the graph has no need of a cell. All pairs of a structure are
    compared: memory grows with the square of its size, which suits molecules.

    Args:
        pos: (n_atoms, 3), Å.
        batch: (n_atoms,) int64, the structure of each atom, in ascending order.
        cutoff: Å, > 0.
        max_neighbors: keep only this many edges into each atom, the shortest ones; None keeps all.
        strict: of neighbours at the same distance, keep those of lowest index and never more than
            ``max_neighbors``. Otherwise all of them stay that are as near as the first one beyond
            the limit, within 0.01 Å^2 of its squared distance (fairchem's degeneracy tolerance).

    Returns:
        (2, n_edges) int64: sources (neighbours) above targets, sorted by target, then by source,
        as fairchem's ``radius_graph_pbc`` sorts them.

    Raises:
        ValueError: shapes that do not fit, a batch vector out of order, a limit that is not
            positive.
    """
    _check(pos, batch, cutoff, max_neighbors)
    pos = pos.detach().to(torch.promote_types(pos.dtype, torch.float32))
    source, target = _pairs(batch)
    squared = (pos[source] - pos[target]).square().sum(dim=-1)
    near = (squared <= cutoff**2) & (squared > MIN_DISTANCE**2)
    source, target, squared = source[near], target[near], squared[near]
    if max_neighbors is not None:
        kept = _nearest(target, squared, len(pos), max_neighbors, strict)
        source, target = source[kept], target[kept]
    return torch.stack([source, target])


def _check(pos: Tensor, batch: Tensor, cutoff: float, max_neighbors: int | None) -> None:
    if pos.dim() != 2 or pos.shape[1] != 3 or batch.shape != pos.shape[:1]:
        raise ValueError(
            "expected pos (n_atoms, 3) and batch (n_atoms,), "
            f"got {tuple(pos.shape)} and {tuple(batch.shape)}"
        )
    if not cutoff > 0:
        raise ValueError(f"cutoff must be > 0, got {cutoff}")
    if max_neighbors is not None and max_neighbors < 1:
        raise ValueError(f"max_neighbors must be at least 1, or None, got {max_neighbors}")
    if (batch[1:] < batch[:-1]).any():
        raise ValueError("batch must be in ascending order, structure after structure")


def _pairs(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Sources and targets of all ordered pairs within structures: (n_pairs,) int64 each."""
    _, structure, natoms = batch.unique_consecutive(return_inverse=True, return_counts=True)
    partners = natoms[structure]  # of each atom, itself among them
    target = torch.arange(len(batch), device=batch.device).repeat_interleave(partners)
    first_atom = (natoms.cumsum(0) - natoms)[structure]
    first_pair = partners.cumsum(0) - partners
    pair = torch.arange(len(target), device=batch.device)
    return pair + (first_atom - first_pair)[target], target


def _nearest(
    target: Tensor, squared: Tensor, n_atoms: int, max_neighbors: int, strict: bool
) -> Tensor:
    """(n_edges,) bool: which edges are among the shortest of their target."""
    # by target, then distance, then index: both sorts are stable
    order = squared.argsort(stable=True)
    order = order[target[order].argsort(stable=True)]
    count = target.bincount(minlength=n_atoms)
    first = count.cumsum(0) - count
    rank = torch.empty_like(target)
    rank[order] = torch.arange(len(target), device=target.device) - first[target[order]]
    if strict:
        return rank < max_neighbors
    limit = squared.new_full((n_atoms,), torch.inf)
    beyond = rank == max_neighbors  # the first one too many
    limit[target[beyond]] = squared[beyond] + DEGENERACY_TOLERANCE
    return squared <= limit[target]
