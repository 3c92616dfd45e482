"""Radius graphs on a GPU: all pairs are compared, and the host waits once, for their number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dens import transfer
from dens.graphs.images import DEGENERACY_TOLERANCE, MIN_DISTANCE

_LARGEST = 2**28  # pairs compared at once, 1 GiB for their distances


class DenseGraph(NamedTuple):
    """Edges sorted by target, then source, then offset, as in fairchem."""

    edge_index: Tensor  # (2, n_edges) int64, sources (neighbours) above targets
    cell_offsets: Tensor  # (n_edges, 3), whole numbers: the cell of the source
    count: Tensor  # (n_atoms,) int64 | edges into each atom
    count_on_host: Tensor  # the same


def reach_of_images(
    pos: Tensor, cell: Tensor, natoms: Tensor, pbc: Tensor | None, cutoff: float
) -> np.ndarray:
    """Find how many cells away an image may be that is within the cutoff: (n_structures, 3) int.

    Args:
        pos: (n_atoms, 3), Å, on the host.
        cell: (n_structures, 3, 3), Å, rows are vectors, on the host.
        natoms: (n_structures,) int64, the atoms of each structure, on the host.
        pbc: (n_structures, 3) bool, all three directions of a structure alike; None: periodic.
        cutoff: Å.

    Raises:
        ValueError: positions are not finite, or a periodic cell has no volume.
    """
    if not pos.isfinite().all():
        atom = int((~pos.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"positions must be finite, got {pos[atom].tolist()} for atom {atom}")
    periodic = np.ones(len(natoms), dtype=bool) if pbc is None else pbc[:, 0].numpy()
    cells = np.where(periodic[:, None, None], cell.detach().double().numpy(), np.eye(3))
    flat = ~(abs(np.linalg.det(cells)) > 0)
    if flat.any():
        raise ValueError(
            f"a periodic cell must have a volume, got {cells[flat][0].tolist()} for structure "
            f"{flat.argmax()} of the batch"
        )
    inverse, first = np.linalg.inv(cells), (natoms.cumsum(0) - natoms).numpy()
    fraction = pos.detach().double()[:, None].numpy() @ np.repeat(inverse, natoms.numpy(), axis=0)
    highest, lowest = (ufunc.reduceat(fraction[:, 0], first) for ufunc in (np.maximum, np.minimum))
    heights = 1 / np.linalg.norm(inverse, axis=1)
    reach = np.floor(cutoff / heights + highest - lowest + 1e-6).astype(int)
    return np.where(periodic[:, None], reach, 0)


def dense_radius_graph(
    pos: Tensor,
    batch: Tensor,
    cell: Tensor,
    natoms: Tensor,
    reach: np.ndarray,
    cutoff: float,
    max_neighbors: int | None = None,
    *,
    strict: bool = True,
) -> DenseGraph:
    r"""Connect atoms with atoms and periodic images no further away than ``cutoff``.

    The edges are those of :func:`dens.graphs.radius.periodic_radius_graph`, except that among
    neighbours at the same distance those of the lowest source and offset are kept.

    Args:
        pos: (n_atoms, 3), Å, on any device.
        batch: (n_atoms,) int64, the structure of each atom, in ascending order.
        cell: (n_structures, 3, 3), Å, rows are vectors.
        natoms: (n_structures,) int64, on the host.
        reach: the images to compare, see :func:`reach_of_images`.
        cutoff, max_neighbors, strict: as in :func:`dens.graphs.radius.radius_graph`.
    """
    pos, cell = (t.detach().to(torch.promote_types(t.dtype, torch.float32)) for t in (pos, cell))
    images, n_images = _images(reach)
    layout = torch.stack([natoms, n_images, natoms.cumsum(0) - natoms])
    width = int((natoms * n_images).max())
    images = transfer.copy_to_device(images.to(pos.dtype), pos.device)
    layout = transfer.copy_to_device(layout, pos.device)
    n_atoms, n_images, first = layout[:, :, None]
    columns = torch.arange(width, device=pos.device)
    source, image = columns // n_images, columns % n_images
    real, source = source < n_atoms, first + torch.minimum(source, n_atoms - 1)
    shifts = (images[..., None] * cell[:, None]).sum(2)  # no matrix product, which may be rounded
    places = pos[source] + shifts.gather(1, image[..., None].expand(-1, -1, 3))
    places = torch.where(real[..., None], places, torch.inf)

    kept = [
        _kept(_squared(pos[rows], places, batch[rows]), cutoff, max_neighbors, strict)
        for rows in _chunks(len(pos), width)
    ]
    count = torch.cat([part.sum(1) for part in kept])
    on_host = transfer.copy_to_host(count)  # the host waits here
    most, total = int(on_host.max()), int(on_host.sum())
    number = columns.int()
    chosen = [torch.where(k, number, width).topk(most, largest=False).values for k in kept]
    atoms = torch.arange(len(pos), device=pos.device)
    target = atoms.repeat_interleave(count, output_size=total)
    rank = torch.arange(total, device=pos.device) - (count.cumsum(0) - count)[target]
    column, structure = torch.cat(chosen)[target, rank], batch[target]
    edge_index = torch.stack([source[structure, column], target])
    return DenseGraph(edge_index, images[structure, image[structure, column]], count, on_host)


def _images(reach: np.ndarray) -> tuple[Tensor, Tensor]:
    """List the cells of each structure, (n_structures, most, 3), and count them."""
    lists = [np.indices(2 * own + 1).reshape(3, -1).T - own for own in reach]
    count = [len(cells) for cells in lists]
    images = np.zeros((len(lists), max(count), 3), dtype=np.int64)
    for row, cells in zip(images, lists, strict=True):
        row[: len(cells)] = cells
    return torch.from_numpy(images), torch.tensor(count)


def _chunks(n_atoms: int, width: int) -> Iterator[slice]:
    size = max(1, _LARGEST // width)
    return (slice(start, start + size) for start in range(0, n_atoms, size))


def _squared(pos: Tensor, places: Tensor, structure: Tensor) -> Tensor:
    """Compute squared distances from atoms to all places of their structures: (n_atoms, width)."""
    parts = (
        (pos[:, i, None] - places[..., i].index_select(0, structure)).square() for i in range(3)
    )
    x, y, z = parts
    return x + y + z


def _kept(squared: Tensor, cutoff: float, max_neighbors: int | None, strict: bool) -> Tensor:
    """Mark the edges that the cutoff and the limit keep, (n_atoms, width) bool."""
    near = (squared <= cutoff**2) & (squared > MIN_DISTANCE**2)
    if max_neighbors is None or squared.shape[1] <= max_neighbors:
        return near
    squared = torch.where(near, squared, torch.inf)
    shortest = squared.topk(max_neighbors + (not strict), largest=False).values
    longest = shortest[:, -1:]
    if not strict:
        return near & (squared <= longest + DEGENERACY_TOLERANCE)
    below, tied = squared < longest, near & (squared == longest)
    room = max_neighbors - below.sum(1, keepdim=True)
    return below | (tied & (tied.cumsum(1) <= room))
