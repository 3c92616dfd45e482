"""The periodic images of atoms that may be within a cutoff of them, by a k-d tree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

# Å; pairs of atoms closer than this have no edge, as in fairchem's periodic search: the direction
# of such an edge means nothing
MIN_DISTANCE = 0.01
# Å^2; without the strict limit, neighbours that are this close to the first one left out stay in,
# as in fairchem
DEGENERACY_TOLERANCE = 0.01


def full_lattice(cell: np.ndarray, pbc: np.ndarray, structure: int) -> np.ndarray:
    """(3, 3), Å: the cell, with unit vectors at right angles in place of what does not repeat."""
    lattice = cell.copy()
    if not pbc.all():
        lattice[~pbc] = 0
        lattice[~pbc] = np.linalg.svd(lattice)[2][pbc.sum() :]
    volume = abs(np.linalg.det(lattice))
    if not volume > 1e-6 * np.linalg.norm(lattice, axis=1).prod():
        raise ValueError(
            f"expected a cell with a volume in the directions {pbc.tolist()} that repeat, got "
            f"{cell.tolist()} for structure {structure} of the batch"
        )
    return lattice


class Candidates(NamedTuple):
    """What may be edges of one structure: more than there are, but no fewer."""

    source: np.ndarray  # (n,) int
    target: np.ndarray  # (n,) int
    offsets: np.ndarray  # (n, 3) int, the cell in which the source stands


class Images:
    """The atoms of one structure and their periodic images, as far as a cutoff reaches.

    Args:
        pos: (n_atoms, 3), float64, Å.
        lattice: (3, 3), Å, with a volume.
        pbc: (3,) bool.
        cutoff: Å.
    """

    def __init__(self, pos: np.ndarray, lattice: np.ndarray, pbc: np.ndarray, cutoff: float):
        # what rounding in single precision may add to or take from a distance
        self.slack = 1e-3 + 1e-6 * abs(pos).max(initial=0)
        self.cutoff = cutoff + self.slack
        inverse = np.linalg.inv(lattice)
        per_length = np.where(pbc, np.linalg.norm(inverse, axis=0), 0)  # lattice planes per Å
        self.reach = np.ceil(cutoff * per_length)  # in cells
        fractions = pos @ inverse
        self.shifts = np.where(pbc, np.floor(fractions), 0).astype(int)  # to stand in one cell
        fractions -= self.shifts
        self.pos = pos - self.shifts @ lattice
        self.atoms, self.offsets = _near_cell(fractions, self.cutoff * per_length, pbc)
        self.tree = cKDTree(self.pos[self.atoms] + self.offsets @ lattice)

    def all_edges(self, targets: np.ndarray) -> Candidates:
        """Those into some atoms, given by their numbers: all within the cutoff."""
        pairs = cKDTree(self.pos[targets]).sparse_distance_matrix(
            self.tree, self.cutoff, output_type="ndarray"
        )
        return self._between(targets[pairs["i"]], pairs["j"])

    def nearest_edges(self, max_neighbors: int) -> Candidates:
        """Those among which are the shortest ones into each atom and the first beyond the limit."""
        return self._between(*self._near(max_neighbors))

    def most_edges(self) -> np.ndarray:
        """(n_atoms,) int: as many edges as each atom may have at most, and seldom has less."""
        near = self.tree.query_ball_point(self.pos, self.cutoff, return_length=True)
        return near - 1  # without the atom itself

    def _between(self, target: np.ndarray, image: np.ndarray) -> Candidates:
        source = self.atoms[image]
        offsets = self.offsets[image] - self.shifts[source] + self.shifts[target]
        return Candidates(source, target, offsets)

    def _near(self, max_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
        """Targets and images, as far as one that may be the first beyond the limit."""
        atoms = np.arange(len(self.pos))
        count = max_neighbors + 10  # the atom itself, the first beyond the limit, its like
        while True:
            distance, image = self.tree.query(self.pos, k=count, distance_upper_bound=self.cutoff)
            too_close = (distance <= MIN_DISTANCE + self.slack).sum(1)
            beyond = np.minimum(too_close + max_neighbors, count - 1)
            limit = np.sqrt(distance[atoms, beyond] ** 2 + DEGENERACY_TOLERANCE) + self.slack
            last = distance[:, -1]
            if np.all((last == np.inf) | (last > limit)):
                limit = np.minimum(limit, self.cutoff)
                target, column = (distance <= limit[:, None]).nonzero()
                return target, image[target, column]
            count *= 2


def _near_cell(
    fractions: np.ndarray, reach: np.ndarray, pbc: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Atoms and offsets of the images within ``reach`` of the atoms in each direction.

    Args:
        fractions: (n_atoms, 3), coordinates in cells.
        reach: (3,), in distances between lattice planes.
    """
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
