"""Check energies, forces and positions for wrong units and missing references."""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dens.data.store.by_format import open_folder
from dens.data.survey.samples import Sample, as_sample
from dens.data.units import suspected_units

FLOAT32_LOSS = 1e-4  # eV, a rounding error worth a warning; loaders cast energies to float32
MAX_STEP = 0.05  # Å between two frames, for energy differences to follow from forces
FAR_STEP = 0.5  # Å, for their signs to follow
MIN_PAIRS = 10
MIN_SIGNS = 5
RECENT = 8  # structures of a system that are kept, to find a similar one
SYSTEMS = 2000  # systems whose structures are kept
SIGN_RECORDS = 300  # records of an output whose signs are looked at
RUN = 10  # consecutive ones of them, which are alike
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
        sizes = set(self._natoms)
        if len(sizes) > 1 and len(self._energies) > 2 and np.ptp(self._energies) == 0:
            found.append(
                f"all structures, of {min(sizes)} to {max(sizes)} atoms, have the same energy, "
                f"{self._energies[0]:g} eV"
            )
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
    r"""Comparison of energy differences between similar structures with those from forces.

    .. math:: E_2 - E_1 \approx -\tfrac12 \sum_i (f_{i,1} + f_{i,2}) \cdot (p_{i,2} - p_{i,1})

    Each structure is compared with the most similar of the last `RECENT` ones that have the same
    atoms and cell, so shuffled trajectories and sets of few frames per system serve too. Over small
    steps, a slope other than 1 means that energies, forces and positions do not have matching
    units; a negative one, also over larger steps, that forces are gradients.
    """

    def __init__(self) -> None:
        self.periodic = False  # whether any structure had a cell
        self._recent: OrderedDict[bytes, deque[Sample]] = OrderedDict()
        # largest step of an atom, Å; expected and given energy difference, eV
        self._pairs: list[tuple[float, float, float]] = []

    def add(self, sample: Sample) -> None:
        """Add the next record."""
        self.periodic |= sample.cell is not None
        if sample.energy is None or sample.forces is None:
            return
        cell = b"" if sample.cell is None else sample.cell.tobytes()
        key = sample.numbers.tobytes() + cell
        similar = self._recent.setdefault(key, deque(maxlen=RECENT))
        self._recent.move_to_end(key)
        if len(self._recent) > SYSTEMS:
            self._recent.popitem(last=False)
        steps = [_step(other, sample) for other in similar]
        lengths = [float(np.linalg.norm(step, axis=1).max()) for step in steps]
        near = [i for i, length in enumerate(lengths) if 0 < length < FAR_STEP]
        if near:
            i = min(near, key=lengths.__getitem__)
            expected = -0.5 * float(((similar[i].forces + sample.forces) * steps[i]).sum())
            self._pairs.append((lengths[i], expected, sample.energy - similar[i].energy))
        similar.append(sample)

    def findings(self) -> list[str]:
        """Describe signs of units that do not match."""
        expected, given = self._differences(MAX_STEP)
        if len(given) < MIN_PAIRS or expected.std() == 0 or given.std() == 0:
            return []
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

    def sign_findings(self) -> list[str]:
        """Describe signs of gradients in the place of forces, whatever the units."""
        found = []
        for limit in (MAX_STEP, FAR_STEP):
            expected, given = self._differences(limit)
            rising = int((expected * given < 0).sum())
            falling = int((expected * given > 0).sum())
            n = rising + falling
            # more than noise or chance would give
            if n >= MIN_SIGNS and rising - falling > max(0.3 * n, 2.2 * n**0.5):
                slope = float(np.median(given[expected != 0] / expected[expected != 0]))
                found.append(
                    f"energies go up along the forces in {rising} of {n} pairs of similar "
                    f"structures (slope {slope:.3g}): gradients in the place of forces?"
                )
                break
        return found

    def _differences(self, limit: float) -> tuple[np.ndarray, np.ndarray]:
        """Return expected and given differences, (n_pairs,) eV each, over steps below a limit."""
        pairs = np.array([pair[1:] for pair in self._pairs if pair[0] < limit]).reshape(-1, 2)
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        return pairs[:, 0], pairs[:, 1]


def find_gradients(folders: Sequence[Path], records: int = SIGN_RECORDS) -> list[str]:
    """Look for gradients in the place of forces in folders of records.

    Args:
        folders: the splits of a data set.
        records: the number that is read, in runs of consecutive ones spread over each folder.
    """
    scale = ForceScale()
    for folder in folders:
        dataset = open_folder(folder)
        runs = max(1, records // (RUN * len(folders)))
        starts = np.linspace(0, max(0, len(dataset) - RUN), runs).astype(int)
        numbers = np.unique(starts[:, None] + np.arange(min(RUN, len(dataset))))
        for sample in (as_sample(i, dataset[i]) for i in numbers.tolist()):
            if isinstance(sample, Sample):
                scale.add(sample)
    return scale.sign_findings()


def _step(one: Sample, other: Sample) -> np.ndarray:
    """Return the displacements of atoms between samples of one cell: (n_atoms, 3), Å."""
    step = other.pos - one.pos
    if other.cell is None:
        return step
    fractional = step @ np.linalg.inv(other.cell)
    return (fractional - fractional.round()) @ other.cell  # wrapped across a face
