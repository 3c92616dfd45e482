"""The periodic images of atoms that may be within a cutoff of them, by a k-d tree."""

from __future__ import annotations

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

    def edges(self, max_neighbors: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sources, targets and offsets, more of them than there are edges but no fewer."""
        if max_neighbors is None:
            pairs = cKDTree(self.pos).sparse_distance_matrix(
                self.tree, self.cutoff, output_type="ndarray"
            )
            target, image = pairs["i"], pairs["j"]
        else:
            target, image = self._near(max_neighbors)
        source = self.atoms[image]
        return source, target, self.offsets[image] - self.shifts[source] + self.shifts[target]

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
