"""Pairs of atoms within a cutoff, with periodic images, in numpy: for statistics and checks."""

from __future__ import annotations

from itertools import product

import numpy as np

# As in fairchem's neighbour search: closer pairs have no edge; and where the number of neighbours
# is not strictly limited, those stay whose squared distance is within this of the first one beyond.
MIN_DISTANCE = 0.01  # Å
DEGENERACY_TOLERANCE = 0.01  # Å^2


def pairs_within(
    pos: np.ndarray, cell: np.ndarray | None, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of atoms no further apart than the cutoff, images included, atoms themselves not.

    Args:
        pos: (n_atoms, 3), Å; in a periodic structure within the cell.
        cell: (3, 3), Å, rows are vectors, periodic in all three; None for an open structure.
        cutoff: Å.

    Returns:
        Targets (n_pairs,), sources (n_pairs,), and squared distances (n_pairs,), Å^2.
    """
    pos = np.asarray(pos, dtype=float)
    targets, sources, squared = [], [], []
    for shift in _shifts(cell, cutoff):
        difference = pos[None, :] + shift - pos[:, None]
        distance = np.einsum("ijk,ijk->ij", difference, difference)
        if not shift.any():
            np.fill_diagonal(distance, np.inf)
        near = np.nonzero(distance <= cutoff**2)
        targets.append(near[0])
        sources.append(near[1])
        squared.append(distance[near])
    return np.concatenate(targets), np.concatenate(sources), np.concatenate(squared)


def _shifts(cell: np.ndarray | None, cutoff: float) -> np.ndarray:
    """(n_images, 3), Å: the lattice vectors that may bring two atoms of the cell within the
    cutoff."""
    if cell is None:
        return np.zeros((1, 3))
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)  # of the cell over each of its faces
    # fractional coordinates of two atoms of the cell differ by less than 1
    ranges = [range(-n, n + 1) for n in (cutoff / heights).astype(int) + 1]
    return np.array(list(product(*ranges))) @ cell


def count_neighbors(
    pos: np.ndarray,
    cell: np.ndarray | None,
    cutoff: float,
    max_neighbors: int | None = None,
    *,
    strict: bool = True,
) -> np.ndarray:
    """The number of edges that fairchem's graph has into each atom.

    Args:
        pos: (n_atoms, 3), Å; in a periodic structure within the cell.
        cell: (3, 3), Å; None for an open structure.
        cutoff: Å.
        max_neighbors: of each atom; None for no limit.
        strict: never more than that, even among neighbours at equal distances.

    Returns:
        (n_atoms,) int64.
    """
    target, _, squared = pairs_within(pos, cell, cutoff)
    real = squared > MIN_DISTANCE**2
    target, squared = target[real], squared[real]
    counts = np.bincount(target, minlength=len(pos))
    if max_neighbors is None:
        return counts
    if strict:
        return np.minimum(counts, max_neighbors)
    order = np.lexsort((squared, target))
    target, squared = target[order], squared[order]
    first = np.cumsum(counts) - counts
    limit = np.full(len(pos), np.inf)
    crowded = counts > max_neighbors
    limit[crowded] = squared[first[crowded] + max_neighbors] + DEGENERACY_TOLERANCE
    return np.bincount(target[squared <= limit[target]], minlength=len(pos))
