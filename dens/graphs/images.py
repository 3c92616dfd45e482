"""Neighbour search: pairs of atoms and periodic images within a cutoff, from a k-d tree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

# Å; closer pairs have no edge, since its direction is undefined; as in fairchem's periodic search
MIN_DISTANCE = 0.01
# Å^2; without the strict limit, neighbours stay whose squared distance is within this of the first
# one beyond the limit, as in fairchem
DEGENERACY_TOLERANCE = 0.01


class Pairs(NamedTuple):
    """Pairs of atoms of one structure."""

    source: NDArray  # (n_pairs,) int
    target: NDArray  # (n_pairs,) int
    offsets: NDArray  # (n_pairs, 3) int, the cell of the source relative to the target's


def pairs_within(pos: NDArray, cell: NDArray | None, cutoff: float) -> tuple[Pairs, NDArray]:
    """Find all pairs within a cutoff, periodic images included, except an atom with itself.

    Args:
        pos: (n_atoms, 3), Å.
        cell: (3, 3), Å, rows are vectors, periodic in all three; None for an open structure.
        cutoff: Å.

    Returns:
        the pairs, and their squared distances (n_pairs,), Å^2.

    Raises:
        ValueError: the cell has no volume.
    """
    pos, pbc = np.asarray(pos, dtype=float), np.full(3, cell is not None)
    images = Images(pos, np.zeros((3, 3)) if cell is None else cell, pbc, cutoff)
    pairs = images.all_pairs(np.arange(len(pos)))
    vectors = pos[pairs.source] + pairs.offsets @ images.lattice - pos[pairs.target]
    squared = np.einsum("ij,ij->i", vectors, vectors)
    distinct = (pairs.source != pairs.target) | pairs.offsets.any(axis=1)
    near = (squared <= cutoff**2) & distinct
    return Pairs(*(part[near] for part in pairs)), squared[near]


class Images:
    """K-d tree of the atoms of one structure and their periodic images within reach of a cutoff.

    It finds candidates: all pairs within the cutoff, and those slightly beyond it, so that the
    caller can decide in single precision.

    Args:
        pos: (n_atoms, 3), float64, Å.
        cell: (3, 3), Å, rows are vectors; those of other than periodic directions are not read.
        pbc: (3,) bool, the periodic directions.
        cutoff: Å.

    Raises:
        ValueError: the periodic cell vectors are zero or parallel.
    """

    def __init__(self, pos: NDArray, cell: NDArray, pbc: NDArray, cutoff: float):
        self.lattice = lattice = full_lattice(cell, pbc)
        # bound on the rounding error of a distance in single precision
        self.slack = 1e-3 + 1e-6 * abs(pos).max(initial=0)
        self.cutoff = cutoff + self.slack
        inverse = np.linalg.inv(lattice)
        per_length = np.where(pbc, np.linalg.norm(inverse, axis=0), 0)  # lattice planes per Å
        self.reach = np.ceil(cutoff * per_length)  # in cells
        fractions = pos @ inverse
        self.shifts = np.where(pbc, np.floor(fractions), 0).astype(int)  # wraps into one cell
        fractions -= self.shifts
        self.pos = pos - self.shifts @ lattice
        self.atoms, self.offsets = _near_cell(fractions, self.cutoff * per_length, pbc)
        self.tree = cKDTree(self.pos[self.atoms] + self.offsets @ lattice)

    def all_pairs(self, targets: NDArray) -> Pairs:
        """Find the pairs within the cutoff whose targets are the given atoms, (n,) int."""
        pairs = cKDTree(self.pos[targets]).sparse_distance_matrix(
            self.tree, self.cutoff, output_type="ndarray"
        )
        return self._between(targets[pairs["i"]], pairs["j"])

    def nearest_pairs(self, max_neighbors: int) -> Pairs:
        """Find the shortest pairs of each target, up to the first beyond the limit and its ties."""
        atoms = np.arange(len(self.pos))
        count = max_neighbors + 10  # the atom itself, the first beyond the limit, its ties
        while True:
            distance, image = self.tree.query(self.pos, k=count, distance_upper_bound=self.cutoff)
            too_close = (distance <= MIN_DISTANCE + self.slack).sum(1)
            beyond = np.minimum(too_close + max_neighbors, count - 1)
            limit = np.sqrt(distance[atoms, beyond] ** 2 + DEGENERACY_TOLERANCE) + self.slack
            last = distance[:, -1]
            if np.all((last == np.inf) | (last > limit)):
                limit = np.minimum(limit, self.cutoff)
                target, column = (distance <= limit[:, None]).nonzero()
                return self._between(target, image[target, column])
            count *= 2

    def max_counts(self) -> NDArray:
        """Bound the number of edges into each atom from above, closely: (n_atoms,) int."""
        # without the atom itself
        return self.tree.query_ball_point(self.pos, self.cutoff, return_length=True) - 1

    def _between(self, target: NDArray, image: NDArray) -> Pairs:
        source = self.atoms[image]
        offsets = self.offsets[image] - self.shifts[source] + self.shifts[target]
        return Pairs(source, target, offsets)


def full_lattice(cell: NDArray, pbc: NDArray) -> NDArray:
    """Replace the cell vectors that are not periodic by unit vectors at right angles: (3, 3), Å.

    Raises:
        ValueError: the periodic vectors are zero or parallel.
    """
    lattice = cell.copy()
    if not pbc.all():
        lattice[~pbc] = 0
        lattice[~pbc] = np.linalg.svd(lattice)[2][pbc.sum() :]
    volume = abs(np.linalg.det(lattice))
    if not volume > 1e-6 * np.linalg.norm(lattice, axis=1).prod():
        raise ValueError(
            f"expected a cell with a volume in its periodic directions {pbc.tolist()}, got "
            f"{cell.tolist()}"
        )
    return lattice


def _near_cell(fractions: NDArray, reach: NDArray, pbc: NDArray) -> tuple[NDArray, NDArray]:
    """List atoms and offsets of the images within ``reach``, in cells, of the atoms."""
    atoms, offsets = np.arange(len(fractions)), np.zeros((len(fractions), 3), int)
    for axis in np.flatnonzero(pbc):
        own = fractions[:, axis]
        cells = np.arange(-np.ceil(reach[axis]), np.ceil(reach[axis]) + 1)
        images = own[atoms, None] + cells
        low, high = own.min(initial=1) - reach[axis], own.max(initial=0) + reach[axis]
        image, cell = ((images >= low) & (images <= high)).nonzero()
        atoms, offsets = atoms[image], offsets[image]
        offsets[:, axis] = cells[cell]
    return atoms, offsets
