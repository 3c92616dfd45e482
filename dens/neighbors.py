"""Radius graphs, exact, with and without periodic boundaries."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dens.images import DEGENERACY_TOLERANCE, MIN_DISTANCE, Images, full_lattice


class PeriodicGraph(NamedTuple):
    """Edges between atoms and the periodic images of atoms."""

    edge_index: Tensor  # (2, n_edges) int64, sources (neighbours) above targets
    cell_offsets: Tensor  # (n_edges, 3), whole numbers: the cell in which the source stands


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
    r"""The edges from atoms and their periodic images that are no further away than ``cutoff``.

    .. math:: \{(j, n, i) : 0.01\,Å < |p_j + n\,C - p_i| \le r_{max},\ n \in \mathbb{Z}^3\}

    An atom is a neighbour of itself in other cells. The candidates come from a k-d tree over the
    images; distances and limits are then those of fairchem's ``radius_graph_pbc`` to the last
    bit, so ties fall as they do there. The one difference: atoms may stand any number of cells
    apart. fairchem's search looks at no more cells than fit the cutoff, from where the atoms
    stand, and may miss edges between atoms that are a cell or more apart.

    Args:
        pos: (n_atoms, 3), Å, on the CPU.
        cell: (n_structures, 3, 3), Å, rows are vectors.
        natoms: (n_structures,) int64, the atoms of each structure.
        cutoff: Å, > 0.
        max_neighbors: as in :func:`radius_graph`.
        strict: never more than ``max_neighbors``; which ones, of neighbours at exactly the same
            distance, is left to PyTorch's sort. Otherwise as in :func:`radius_graph`.
        pbc: (n_structures, 3) bool, the directions that repeat; None: all. A cell vector that
            does not is not read.

    Returns:
        edges sorted by target, then source, then offset, as fairchem sorts them.

    Raises:
        ValueError: shapes that do not fit, positions that are not finite, a periodic cell without
            a volume, a limit that is not positive.
    """
    pbc = torch.ones(len(cell), 3, dtype=torch.bool) if pbc is None else pbc
    _check_periodic(pos, cell, natoms, pbc)
    structure = torch.arange(len(natoms)).repeat_interleave(natoms)
    _check(pos, structure, cutoff, max_neighbors)
    pos = pos.detach().to(torch.promote_types(pos.dtype, torch.float32))
    args = pos, cell.detach().to(pos.dtype), natoms, pbc, cutoff
    source, target, offsets, squared = _periodic_edges(*args, max_neighbors)
    kept = slice(None)
    if max_neighbors is not None:
        kept = _nearest(target, squared, len(pos), max_neighbors, strict)
        if strict and _tied(target, squared, kept, len(pos)):
            source, target, offsets, squared = _periodic_edges(*args, None)
            kept = _nearest_as_fairchem(target, squared, len(pos), max_neighbors)
    return PeriodicGraph(torch.stack([source[kept], target[kept]]), offsets[kept].to(pos.dtype))


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


def _check_periodic(pos: Tensor, cell: Tensor, natoms: Tensor, pbc: Tensor) -> None:
    n = len(natoms)
    if cell.shape != (n, 3, 3) or pbc.shape != (n, 3) or natoms.sum() != len(pos):
        raise ValueError(
            f"expected cell ({n}, 3, 3), pbc ({n}, 3) and {natoms.sum()} positions, as natoms has "
            f"it, got {tuple(cell.shape)}, {tuple(pbc.shape)} and {len(pos)}"
        )
    if not pos.isfinite().all():
        atom = (~pos.isfinite()).any(1).nonzero()[0].item()
        raise ValueError(f"positions must be finite, got {pos[atom].tolist()} for atom {atom}")


def _tied(target: Tensor, squared: Tensor, kept: Tensor, n_atoms: int) -> bool:
    """Whether an edge that is left out is exactly as long as one that is kept."""
    longest = squared.new_zeros(n_atoms).scatter_reduce(0, target[kept], squared[kept], "amax")
    return bool((squared[~kept] == longest[target[~kept]]).any())


def _nearest_as_fairchem(
    target: Tensor, squared: Tensor, n_atoms: int, max_neighbors: int
) -> Tensor:
    """(n_edges,) int64: the shortest edges of each target, ties decided by fairchem's sort.

    That sort is not stable: what it keeps depends on the length of its rows, so on all edges
    within the cutoff, in the whole batch.
    """
    count = target.bincount(minlength=n_atoms)
    first = count.cumsum(0) - count
    column = torch.arange(len(target)) - first[target]
    rows = squared.new_full((n_atoms, int(count.max())), torch.inf)
    rows[target, column] = squared
    shortest, column = (t[:, :max_neighbors] for t in rows.sort(dim=1))
    kept = (first[:, None] + column)[shortest.isfinite()]
    return kept.sort()[0]


def _periodic_edges(
    pos: Tensor,
    cell: Tensor,
    natoms: Tensor,
    pbc: Tensor,
    cutoff: float,
    max_neighbors: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sources, targets, offsets and squared lengths of the edges, sorted.

    All edges within the cutoff; with a limit, those that it may keep and the first beyond.
    """
    source, target, offsets, reach = _candidates(pos, cell, natoms, pbc, cutoff, max_neighbors)
    structure = torch.arange(len(natoms)).repeat_interleave(natoms)
    vectors = _offset_vectors(cell, offsets, structure[target], reach)
    x, y, z = (pos[target] - (pos[source] + vectors)).square().unbind(1)
    squared = x + y + z
    edge = (squared <= cutoff**2) & (squared > MIN_DISTANCE**2)
    return source[edge], target[edge], offsets[edge], squared[edge]


def _candidates(
    pos: Tensor,
    cell: Tensor,
    natoms: Tensor,
    pbc: Tensor,
    cutoff: float,
    max_neighbors: int | None,
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Sources, targets and offsets that may be edges, sorted by target, source, offset.

    Last, the number of cells that fairchem looks at in each direction.
    """
    parts = [(np.empty(0, int), np.empty(0, int), np.empty((0, 3), int))]
    reach, first, flags = np.zeros(3), 0, pbc.numpy()
    for i, own in enumerate(pos.double().split(natoms.tolist())):
        lattice = full_lattice(cell[i].double().numpy(), flags[i], i)
        images = Images(own.numpy(), lattice, flags[i], cutoff)
        reach = np.maximum(reach, images.reach)
        if len(own):
            source, target, offsets = images.edges(max_neighbors)
            parts.append((source + first, target + first, offsets))
        first += len(own)
    source, target, offsets = (np.concatenate(part) for part in zip(*parts, strict=True))
    width = 2 * abs(offsets).max(initial=0) + 1
    number = (offsets[:, 0] * width + offsets[:, 1]) * width + offsets[:, 2]
    order = np.lexsort((number, source, target))
    found = (torch.from_numpy(part[order]) for part in (source, target, offsets))
    return *found, reach.astype(int).tolist()


def _offset_vectors(cell: Tensor, offsets: Tensor, structure: Tensor, reach: list[int]) -> Tensor:
    """(n, 3), Å: the offsets times their cells.

    As fairchem computes them, one product for all cells that it looks at: rounding would differ
    otherwise, and with it the choice among neighbours at the same distance.
    """
    ranges = [torch.arange(-n, n + 1) for n in reach]
    cells = torch.cartesian_prod(*ranges)
    reach = torch.tensor(reach)
    a, b, c = (offsets + reach).unbind(1)
    number = (a * len(ranges[1]) + b) * len(ranges[2]) + c
    far = (offsets.abs() > reach).any(1)
    if far.any():
        extra, of_extra = offsets[far].unique(dim=0, return_inverse=True)
        number[far] = of_extra + len(cells)
        cells = torch.cat([cells, extra])
    cells = cells.to(cell.dtype).t().expand(len(cell), -1, -1)
    return torch.bmm(cell.transpose(1, 2), cells)[structure, :, number]
