"""Radius graphs, exact, with and without periodic boundaries."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dens.graphs.images import DEGENERACY_TOLERANCE, MIN_DISTANCE, Candidates, Images, full_lattice


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
    search = _PeriodicSearch(pos, cell, structure, natoms, pbc, cutoff)
    if max_neighbors is None:
        edges = search.all_edges(torch.ones(len(pos), dtype=torch.bool))
    else:
        edges = search.nearest_edges(max_neighbors)
        kept = _nearest(edges.target, edges.squared, len(pos), max_neighbors, strict)
        if strict and (tied := _tied(edges, kept, len(pos))).any():
            others = edges.select(kept & ~tied[edges.target])
            edges = others.join(_nearest_as_fairchem(search, tied, max_neighbors))
        else:
            edges = edges.select(kept)
    return PeriodicGraph(torch.stack([edges.source, edges.target]), edges.offsets.to(pos.dtype))


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


class _Edges(NamedTuple):
    """Edges sorted by target, then source, then offset."""

    source: Tensor  # (n,) int64
    target: Tensor  # (n,) int64
    offsets: Tensor  # (n, 3) int64
    squared: Tensor  # (n,), Å^2, the square of the length

    def select(self, kept: Tensor) -> _Edges:
        return _Edges(*(tensor[kept] for tensor in self))

    def join(self, others: _Edges) -> _Edges:
        """With those into other atoms."""
        both = _Edges(*map(torch.cat, zip(self, others, strict=True)))
        return both.select(both.target.argsort(stable=True))


class _PeriodicSearch:
    """The edges of a batch within a cutoff, their lengths rounded as fairchem's are."""

    def __init__(
        self,
        pos: Tensor,
        cell: Tensor,
        structure: Tensor,
        natoms: Tensor,
        pbc: Tensor,
        cutoff: float,
    ) -> None:
        self.pos = pos.detach().to(torch.promote_types(pos.dtype, torch.float32))
        self.cell = cell.detach().to(self.pos.dtype)
        self.structure, self.natoms, self.cutoff = structure, natoms.tolist(), cutoff
        flags, self.images = pbc.numpy(), []
        for i, own in enumerate(self.pos.double().split(self.natoms)):
            lattice = full_lattice(self.cell[i].double().numpy(), flags[i], i)
            self.images.append(Images(own.numpy(), lattice, flags[i], cutoff))
        # of cells that fairchem looks at in each direction
        self.reach = np.max([images.reach for images in self.images], axis=0, initial=0).astype(int)

    def nearest_edges(self, max_neighbors: int) -> _Edges:
        """Those that the limit may keep, and the first beyond."""
        return self._edges([images.nearest_edges(max_neighbors) for images in self.images])

    def all_edges(self, targets: Tensor) -> _Edges:
        """Those into the atoms ``targets``: (n_atoms,) bool."""
        parts = zip(self.images, targets.split(self.natoms), strict=True)
        return self._edges([i.all_edges(own.nonzero()[:, 0].numpy()) for i, own in parts])

    def most_edges(self) -> Tensor:
        """(n_atoms,) int64: as many edges as each atom may have at most."""
        return torch.from_numpy(np.concatenate([images.most_edges() for images in self.images]))

    def _edges(self, parts: list[Candidates]) -> _Edges:
        first = np.cumsum([0, *self.natoms[:-1]])
        parts = [(p.source + n, p.target + n, p.offsets) for p, n in zip(parts, first, strict=True)]
        source, target, offsets = (np.concatenate(part) for part in zip(*parts, strict=True))
        width = 2 * abs(offsets).max(initial=0) + 1
        number = (offsets[:, 0] * width + offsets[:, 1]) * width + offsets[:, 2]
        order = np.lexsort((number, source, target))
        source, target, offsets = (torch.from_numpy(x[order]) for x in (source, target, offsets))
        vectors = self._vectors(offsets, self.structure[target])
        x, y, z = (self.pos[target] - (self.pos[source] + vectors)).square().unbind(1)
        squared = x + y + z
        near = (squared <= self.cutoff**2) & (squared > MIN_DISTANCE**2)
        return _Edges(source, target, offsets, squared).select(near)

    def _vectors(self, offsets: Tensor, structure: Tensor) -> Tensor:
        """(n, 3), Å: the offsets times their cells.

        As fairchem computes them, one product for all cells that it looks at: rounding would
        differ otherwise, and with it the choice among neighbours at the same distance.
        """
        ranges = [torch.arange(-n, n + 1) for n in self.reach]
        cells = torch.cartesian_prod(*ranges)
        reach = torch.from_numpy(self.reach)
        a, b, c = (offsets + reach).unbind(1)
        number = (a * len(ranges[1]) + b) * len(ranges[2]) + c
        far = (offsets.abs() > reach).any(1)
        if far.any():
            extra, of_extra = offsets[far].unique(dim=0, return_inverse=True)
            number[far] = of_extra + len(cells)
            cells = torch.cat([cells, extra])
        cells = cells.to(self.cell.dtype).t().expand(len(self.cell), -1, -1)
        return torch.bmm(self.cell.transpose(1, 2), cells)[structure, :, number]


def _tied(edges: _Edges, kept: Tensor, n_atoms: int) -> Tensor:
    """(n_atoms,) bool: where an edge that is left out is exactly as long as one that is kept."""
    target, squared = edges.target, edges.squared
    longest = squared.new_zeros(n_atoms).scatter_reduce(0, target[kept], squared[kept], "amax")
    tied = torch.zeros(n_atoms, dtype=torch.bool)
    tied[target[~kept & (squared == longest[target])]] = True
    return tied


def _nearest_as_fairchem(search: _PeriodicSearch, atoms: Tensor, max_neighbors: int) -> _Edges:
    """The shortest edges into ``atoms``, (n_atoms,) bool; ties are decided by fairchem's sort.

    That sort is not stable: what it keeps of an atom's edges depends on all of them within the
    cutoff, and on the most that any atom of the batch has, the length of its rows.
    """
    most = search.most_edges()
    chosen = atoms.clone()
    chosen[most.argmax()] = True
    while True:
        edges = search.all_edges(chosen)
        count = edges.target.bincount(minlength=len(atoms))
        more = ~chosen & (most > count.max())
        if not more.any():
            break
        chosen |= more
    length = int(count.max())
    edges = edges.select(atoms[edges.target])
    row = atoms.cumsum(0) - 1
    count = count[atoms]
    first = count.cumsum(0) - count
    column = torch.arange(len(edges.target)) - first[row[edges.target]]
    rows = edges.squared.new_full((len(count), length), torch.inf)
    rows[row[edges.target], column] = edges.squared
    shortest, column = (t[:, :max_neighbors] for t in rows.sort(dim=1))
    kept = (first[:, None] + column)[shortest.isfinite()]
    return edges.select(kept.sort()[0])
