"""Check energies, forces and positions for wrong units and missing references."""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np

from dens.data.survey.samples import Sample
from dens.data.units import suspected_units

FLOAT32_LOSS = 1e-4  # eV, a rounding error worth a warning; loaders cast energies to float32
MAX_STEP = 0.05  # Å between two frames, for energy differences to follow from forces
MIN_PAIRS = 10
TOTAL = 0.5  # eV per atom; adsorption and referenced energies are smaller
CONTACTS = (0.7, 1.6)  # usual nearest neighbour distances over the sums of covalent radii


class EnergyScale:
    """Statistics of energies and nearest-neighbour distances that reveal units and references."""

    def __init__(self) -> None:
        self._energies = array("d")
        self._natoms = array("q")
        self._suspected: Counter = Counter()
        self._contacts: list[float] = []

    def add(self, numbers: np.ndarray, energy: float) -> None:
        """Add a structure: (n_atoms,) atomic numbers, and eV. NaN and infinity do not count."""
        if np.isfinite(energy):
            self._energies.append(energy)
            self._natoms.append(len(numbers))
            suspected = suspected_units(numbers, energy)
            if suspected:
                self._suspected[suspected] += 1

    def add_contacts(self, target: np.ndarray, ratios: np.ndarray, n_atoms: int) -> None:
        """Add the pairs of a structure.

        Args:
            target: (n_pairs,) int.
            ratios: (n_pairs,), distances over the sums of covalent radii.
        """
        if len(target):
            nearest = np.full(n_atoms, np.inf)
            np.minimum.at(nearest, target, ratios)
            self._contacts.append(float(np.median(nearest)))

    def to_dict(self) -> dict[str, float]:
        """Return mean, standard deviation and extremes in eV."""
        e = np.array(self._energies or [np.nan])
        values = {"mean": e.mean(), "std": e.std(), "min": e.min(), "max": e.max()}
        return {name: float(value) for name, value in values.items()}

    def text(self) -> str:
        """Format one line for a terminal."""
        return "energy [eV]: " + "  ".join(f"{k} {v:.6g}" for k, v in self.to_dict().items())

    def unit_findings(self) -> list[str]:
        """Describe signs of wrong units."""
        found = [
            f"{n} energies are those of all electrons in {name}"
            for name, n in self._suspected.items()
        ]
        if self._contacts:
            typical = float(np.median(self._contacts))
            if not CONTACTS[0] < typical < CONTACTS[1]:
                found.append(
                    f"an atom's nearest neighbour is typically {typical:.2f} times the sum of "
                    "their covalent radii away: positions in Bohr or nm?"
                )
        return found

    def reference_findings(self) -> list[str]:
        """Describe signs of total energies."""
        if not self._energies:
            return []
        energies = np.array(self._energies)
        loss = float(np.spacing(np.float32(np.abs(energies).max()))) / 2
        found = []
        if loss > FLOAT32_LOSS:
            found.append(f"energies up to {np.abs(energies).max():.6g} eV, +-{1e3 * loss:.2g} meV")
        per_atom = float(np.median(energies / np.array(self._natoms)))
        if abs(per_atom) > TOTAL:
            found.append(f"energies of typically {per_atom:.3g} eV per atom")
        return found


class ForceScale:
    r"""Comparison of energy differences between consecutive records with those from forces.

    .. math:: E_2 - E_1 \approx -\tfrac12 \sum_i (f_{i,1} + f_{i,2}) \cdot (p_{i,2} - p_{i,1})

    A slope other than 1 means that energies, forces and positions do not have matching units.
    """

    def __init__(self) -> None:
        self._last: Sample | None = None
        self._pairs: list[tuple[float, float]] = []  # expected, given; eV

    def add(self, sample: Sample) -> None:
        """Add the next record."""
        last, self._last = self._last, sample
        if last is None or not np.array_equal(last.numbers, sample.numbers):
            return
        if any(s.energy is None or s.forces is None for s in (last, sample)):
            return
        step = sample.pos - last.pos
        if sample.cell is not None:
            if last.cell is None or not np.array_equal(last.cell, sample.cell):
                return
            fractional = step @ np.linalg.inv(sample.cell)
            step = (fractional - fractional.round()) @ sample.cell  # wrapped across a face
        if 0 < np.abs(step).max() < MAX_STEP:
            expected = -0.5 * float(((last.forces + sample.forces) * step).sum())
            self._pairs.append((expected, sample.energy - last.energy))

    def findings(self) -> list[str]:
        """Describe signs of units that do not match."""
        pairs = np.array(self._pairs)
        if len(pairs) < MIN_PAIRS or not np.isfinite(pairs).all() or (pairs.std(axis=0) == 0).any():
            return []
        expected, given = pairs.T
        slope = float((expected * given).sum() / (expected**2).sum())
        # the median is robust against single frames of another run
        ratio = float(np.median(given[expected != 0] / expected[expected != 0]))
        correlated = np.corrcoef(expected, given)[0, 1] > 0.9
        if correlated and not (0.67 < ratio < 1.5 and 0.5 < slope < 2):
            return [
                f"energies change {ratio:.3g} times as much from frame to frame as forces say: "
                "energies, forces and positions of different units?"
            ]
        return []
