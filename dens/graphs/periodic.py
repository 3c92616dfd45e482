"""Edges of periodic structures with fairchem's rounding, order and choice among ties."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from dens.graphs.images import MIN_DISTANCE, Images, Pairs


class Edges(NamedTuple):
    """Edges sorted by target, then source, then offset."""

    source: Tensor  # (n,) int64
    target: Tensor  # (n,) int64
    offsets: Tensor  # (n, 3) int64
    squared: Tensor  # (n,), Å^2, the squared length

    def select(self, kept: Tensor) -> Edges:
        """Select edges by a mask or by their numbers."""
        return Edges(*(tensor[kept] for tensor in self))


class PeriodicSearch:
    """Search for the edges of a batch within a cutoff, with lengths rounded as in fairchem.

    Arguments are those of :func:`dens.graphs.radius.periodic_radius_graph`, checked.
    """

    def __init__(
        self, pos: Tensor, cell: Tensor, natoms: Tensor, pbc: Tensor, cutoff: float
    ) -> None:
        self.pos = pos.detach().to(torch.promote_types(pos.dtype, torch.float32))
        self.cell = cell.detach().to(self.pos.dtype)
        self.structure = torch.arange(len(natoms)).repeat_interleave(natoms)
        self.natoms, self.cutoff, self.images = natoms.tolist(), cutoff, []
        for i, own in enumerate(self.pos.double().split(self.natoms)):
            lattice = self.cell[i].double().numpy()
            try:
                self.images.append(Images(own.numpy(), lattice, pbc[i].numpy(), cutoff))
            except ValueError as error:
                raise ValueError(f"{error} for structure {i} of the batch") from None
        # cells that fairchem searches in each direction
        self.reach = np.max([images.reach for images in self.images], axis=0, initial=0).astype(int)

    def nearest_edges(self, max_neighbors: int) -> Edges:
        """Find the edges that the limit may keep, and the first beyond it."""
        return self._edges([images.nearest_pairs(max_neighbors) for images in self.images])

    def all_edges(self, targets: Tensor) -> Edges:
        """Find all edges into the atoms ``targets``: (n_atoms,) bool."""
        parts = zip(self.images, targets.split(self.natoms), strict=True)
        return self._edges([i.all_pairs(own.nonzero()[:, 0].numpy()) for i, own in parts])

    def max_counts(self) -> Tensor:
        """Bound the number of edges into each atom from above: (n_atoms,) int64."""
        return torch.from_numpy(np.concatenate([images.max_counts() for images in self.images]))

    def _edges(self, parts: list[Pairs]) -> Edges:
        first = np.cumsum([0, *self.natoms[:-1]])
        moved = [(p.source + n, p.target + n, p.offsets) for p, n in zip(parts, first, strict=True)]
        source, target, offsets = (np.concatenate(part) for part in zip(*moved, strict=True))
        width = 2 * abs(offsets).max(initial=0) + 1
        number = (offsets[:, 0] * width + offsets[:, 1]) * width + offsets[:, 2]
        order = np.lexsort((number, source, target))
        source, target, offsets = (torch.from_numpy(x[order]) for x in (source, target, offsets))
        vectors = self._vectors(offsets, self.structure[target])
        x, y, z = (self.pos[target] - (self.pos[source] + vectors)).square().unbind(1)
        squared = x + y + z
        near = (squared <= self.cutoff**2) & (squared > MIN_DISTANCE**2)
        return Edges(source, target, offsets, squared).select(near)

    def _vectors(self, offsets: Tensor, structure: Tensor) -> Tensor:
        """Multiply offsets with their cells: (n, 3), Å.

        As in fairchem, one matrix product for all cells that it searches: otherwise rounding would
        differ, and with it the choice among neighbours at the same distance.
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


def tied_targets(edges: Edges, kept: Tensor, n_atoms: int) -> Tensor:
    """Mark atoms with an omitted edge exactly as long as the longest kept: (n_atoms,) bool."""
    target, squared = edges.target, edges.squared
    longest = squared.new_zeros(n_atoms).scatter_reduce(0, target[kept], squared[kept], "amax")
    tied = torch.zeros(n_atoms, dtype=torch.bool)
    tied[target[~kept & (squared == longest[target])]] = True
    return tied


def nearest_as_fairchem(search: PeriodicSearch, atoms: Tensor, max_neighbors: int) -> Edges:
    """Find the shortest edges into ``atoms``, (n_atoms,) bool; fairchem's sort decides ties.

    That sort is not stable: which edges of an atom it keeps depends on all of them within the
    cutoff, and on the largest number that any atom of the batch has, the length of its rows.
    """
    most = search.max_counts()
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
    edges, count = edges.select(atoms[edges.target]), count[atoms]
    rows = pad_sequence(edges.squared.split(count.tolist()), True, torch.inf)
    rows = pad(rows, (0, length - rows.shape[1]), value=torch.inf)
    shortest, column = (t[:, :max_neighbors] for t in rows.sort(dim=1))
    kept = ((count.cumsum(0) - count)[:, None] + column)[shortest.isfinite()]
    return edges.select(kept.sort()[0])
