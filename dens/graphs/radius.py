"""Radius graphs with fairchem's edges, with and without periodic boundaries."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dens.graphs.images import DEGENERACY_TOLERANCE, MIN_DISTANCE, pairs_within
from dens.graphs.periodic import Edges, PeriodicSearch, nearest_as_fairchem, tied_targets


class PeriodicGraph(NamedTuple):
    """Edges between atoms and periodic images of atoms."""

    edge_index: Tensor  # (2, n_edges) int64, sources (neighbours) above targets
    cell_offsets: Tensor  # (n_edges, 3), whole numbers: the cell of the source


def radius_graph(
    pos: Tensor,
    batch: Tensor,
    cutoff: float,
    max_neighbors: int | None = None,
    *,
    strict: bool = True,
) -> Tensor:
    r"""Connect atoms of the same structure that are no further apart than ``cutoff``.

    .. math:: \{(j, i) : j \ne i,\ 0.01\,Å < |p_j - p_i| \le r_{max}\}

    No cell is read. All pairs of a structure are compared: memory grows with the square of its
    size, which suits molecules.

    >>> pos = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]])
    >>> radius_graph(pos, torch.zeros(3, dtype=torch.long), cutoff=2.0).tolist()
    [[1, 0, 2, 1], [0, 1, 1, 2]]

    Args:
        pos: (n_atoms, 3), Å.
        batch: (n_atoms,) int64, the structure of each atom, in ascending order.
        cutoff: Å, > 0.
        max_neighbors: keep only this many edges into each atom, the shortest ones; None keeps all.
        strict: never keep more than ``max_neighbors``; of neighbours at the same distance, the
            lowest indices. Otherwise all neighbours stay whose squared distance is at most 0.01 Å^2
            above that of the first one beyond the limit (fairchem's degeneracy tolerance).

    Returns:
        (2, n_edges) int64: sources (neighbours) above targets, sorted by target, then by source,
        as in fairchem's ``radius_graph_pbc``.

    Raises:
        ValueError: shapes do not match, the batch vector is not sorted, or a limit is not positive.
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


def periodic_radius_graph(
    pos: Tensor,
    cell: Tensor,
    natoms: Tensor,
    cutoff: float,
    max_neighbors: int | None = None,
    *,
    strict: bool = True,
    pbc: Tensor | None = None,
) -> PeriodicGraph:
    r"""Connect atoms with atoms and periodic images no further away than ``cutoff``.

    .. math:: \{(j, n, i) : 0.01\,Å < |p_j + n\,C - p_i| \le r_{max},\ n \in \mathbb{Z}^3\}

    An atom is a neighbour of its own images. A k-d tree finds candidates; distances and limits are
    then computed as in fairchem's ``radius_graph_pbc`` to the last bit, so ties are decided alike.
    The one difference: fairchem searches only the cells within the cutoff of an atom's own cell,
    and may miss edges between atoms that are a cell or more apart; here none is missed.

    Args:
        pos: (n_atoms, 3), Å, on the CPU.
        cell: (n_structures, 3, 3), Å, rows are vectors.
        natoms: (n_structures,) int64, the atoms of each structure.
        cutoff: Å, > 0.
        max_neighbors: as in :func:`radius_graph`.
        strict: never keep more than ``max_neighbors``; of neighbours at exactly the same distance,
            those that PyTorch's sort puts first. Otherwise as in :func:`radius_graph`.
        pbc: (n_structures, 3) bool, the periodic directions; None: all. Other cell vectors are not
            read.

    Returns:
        edges sorted by target, then source, then offset, as in fairchem.

    Raises:
        ValueError: shapes do not match, positions are not finite, a periodic cell has no volume, or
            a limit is not positive.
    """
    pbc = torch.ones(len(cell), 3, dtype=torch.bool) if pbc is None else pbc
    n = len(natoms)
    if cell.shape != (n, 3, 3) or pbc.shape != (n, 3) or natoms.sum() != len(pos):
        raise ValueError(
            f"expected cell ({n}, 3, 3), pbc ({n}, 3) and {natoms.sum()} positions, the sum of "
            f"natoms, got {tuple(cell.shape)}, {tuple(pbc.shape)} and {len(pos)}"
        )
    if not pos.isfinite().all():
        atom = (~pos.isfinite()).any(1).nonzero()[0].item()
        raise ValueError(f"positions must be finite, got {pos[atom].tolist()} for atom {atom}")
    _check(pos, pos.new_zeros(len(pos)), cutoff, max_neighbors)
    search = PeriodicSearch(pos, cell, natoms, pbc, cutoff)
    if max_neighbors is None:
        edges = search.all_edges(torch.ones(len(pos), dtype=torch.bool))
    else:
        edges = search.nearest_edges(max_neighbors)
        kept = _nearest(edges.target, edges.squared, len(pos), max_neighbors, strict)
        tied = tied_targets(edges, kept, len(pos)) & strict
        edges = edges.select(kept & ~tied[edges.target])
        if tied.any():
            others = nearest_as_fairchem(search, tied, max_neighbors)
            edges = Edges(*map(torch.cat, zip(edges, others, strict=True)))
            edges = edges.select(edges.target.argsort(stable=True))
    return PeriodicGraph(torch.stack([edges.source, edges.target]), edges.offsets.to(pos.dtype))


def count_neighbors(
    pos: np.ndarray,
    cell: np.ndarray | None,
    cutoff: float,
    max_neighbors: int | None = None,
    *,
    strict: bool = True,
) -> np.ndarray:
    """Count the edges into each atom of one structure: (n_atoms,) int64.

    Args:
        pos: (n_atoms, 3), Å.
        cell: (3, 3), Å, periodic in all directions; None for an open structure.
        cutoff, max_neighbors, strict: as in :func:`radius_graph`.
    """
    pairs, squared = pairs_within(pos, cell, cutoff)
    real = squared > MIN_DISTANCE**2
    target, squared = torch.from_numpy(pairs.target[real]), torch.from_numpy(squared[real])
    if max_neighbors is not None:
        target = target[_nearest(target, squared, len(pos), max_neighbors, strict)]
    return target.bincount(minlength=len(pos)).numpy()


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
    """List sources and targets of all ordered pairs within structures: (n_pairs,) int64 each."""
    first_atom = torch.searchsorted(batch, batch)
    partners = torch.searchsorted(batch, batch, right=True) - first_atom  # with the atom itself
    atoms = torch.arange(len(batch), device=batch.device)
    target = atoms.repeat_interleave(partners)
    first_pair = partners.cumsum(0) - partners
    pair = torch.arange(len(target), device=batch.device)
    return pair + (first_atom - first_pair)[target], target


def _nearest(
    target: Tensor, squared: Tensor, n_atoms: int, max_neighbors: int, strict: bool
) -> Tensor:
    """Mark the shortest edges of each target: (n_edges,) bool."""
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
