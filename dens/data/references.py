r"""Linear per-element reference energies.

.. math:: E_{ref} = \sum_i c(Z_i)

Energies minus their references are of the order of eV, where float32 is accurate; it rounds
-900 eV by up to 0.03 meV and -20,000 eV by up to 1 meV.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from dens.data.units import all_electron_energy

N_ELEMENTS = len(chemical_symbols)  # 119: atomic number 0 is no element
VALENCE = (0.01, 100.0)  # eV; magnitudes of references for energies of valence electrons
BAD_FIT = 1.0  # eV per atom; a fit to totals of one kind leaves less, root mean square


@dataclass(frozen=True)
class References:
    """Reference energies of the elements.

    Attributes:
        coeff: (119,) eV per atom by atomic number, NaN for absent elements.
        source: file or fit, for messages.
        remarks: on a fit, each a line for the report.
    """

    coeff: np.ndarray
    source: str
    remarks: tuple[str, ...] = ()

    def energy(self, numbers: np.ndarray) -> float:
        """Sum the references of atoms, in eV.

        >>> coeff = np.full(119, np.nan)
        >>> coeff[[1, 8]] = -3.5, -7.0
        >>> References(coeff, "water").energy(np.array([8, 1, 1]))
        -14.0

        Args:
            numbers: (n_atoms,) atomic numbers.

        Raises:
            ValueError: an element has no reference.
        """
        total = float(self.coeff[numbers].sum())
        if np.isnan(total):
            absent = np.unique(np.asarray(numbers)[np.isnan(self.coeff[numbers])])
            names = ", ".join(chemical_symbols[z] for z in absent)
            raise ValueError(f"no reference energy for {names} in {self.source}")
        return total


def load_references(path: str | Path) -> References:
    """Read references from an ``.npz`` whose ``coeff`` holds eV per atom, by atomic number.

    NaN marks absent elements. Files without NaN, as fairchem ships them, hold whatever the least
    squares fit left there: 0 to 0.005, 156, or 5e3 to 6e12 eV. In such a file an element counts as
    present if its magnitude is 0.01 to 100 eV (energies of valence electrons; OC20 and OC22 have
    0.2 to 17), or if the value is within 20 % of the energy of all its electrons (carbon: -1036).

    Raises:
        ValueError: the file cannot be read, or ``coeff`` is not one number per element.
    """
    try:
        with np.load(path) as file:
            given = np.asarray(file["coeff"], dtype=float)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path}: expected an .npz with the key coeff: {error}") from error
    if given.ndim != 1 or len(given) > N_ELEMENTS:
        raise ValueError(
            f"{path}: coeff must be one number per atomic number, at most ({N_ELEMENTS},), "
            f"got {given.shape}"
        )
    present = np.isfinite(given)
    if not np.isnan(given).any():
        low, high = VALENCE
        all_electrons = [all_electron_energy([z]) for z in range(len(given))]
        present &= np.isclose(given, all_electrons, rtol=0.2, atol=0) | (
            (np.abs(given) >= low) & (np.abs(given) <= high)
        )
        present[:1] = False
    coeff = np.full(N_ELEMENTS, np.nan)
    coeff[: len(given)] = np.where(present, given, np.nan)
    return References(coeff, str(path))


def fit_references(samples: Iterable[tuple[np.ndarray, float]], source: str) -> References:
    """Fit references by least squares; if several fit equally well, take those of smallest norm.

    They are rounded to 1e-6 eV, so that they do not depend on the last bits of the linear algebra.

    Args:
        samples: atomic numbers (n_atoms,) and energy in eV of each structure.
        source: what to call the fit in messages.

    Raises:
        ValueError: there are no structures.
    """
    counts: dict[bytes, list[float]] = {}  # one row per composition: there are few
    for numbers, energy in samples:
        row = np.bincount(numbers, minlength=N_ELEMENTS)
        counts.setdefault(row.tobytes(), []).append(energy)
    if not counts:
        raise ValueError(f"{source}: expected structures to fit the references to, got none")
    rows = np.array([np.frombuffer(row, dtype=np.int64) for row in counts], dtype=float)
    weight = np.sqrt([len(energies) for energies in counts.values()])
    means = np.array([np.mean(energies) for energies in counts.values()])
    present = np.flatnonzero(rows.any(axis=0))
    weighted = rows[:, present] * weight[:, None]
    solution = np.linalg.lstsq(weighted, means * weight, rcond=None)[0]
    coeff = np.full(N_ELEMENTS, np.nan)
    coeff[present] = solution.round(6)
    energies = np.concatenate(list(counts.values()))
    of_each = np.repeat(np.arange(len(rows)), [len(values) for values in counts.values()])
    sizes = rows.sum(axis=1)[of_each]
    left = energies - (rows[:, present] @ coeff[present])[of_each]
    remarks = [_describe_left(left, sizes), *_describe_undetermined(weighted, present)]
    if len(np.unique(sizes)) > 1 and np.ptp(energies) == 0:
        remarks.append(
            f"all structures, of {sizes.min():g} to {sizes.max():g} atoms, have the same energy, "
            f"{energies[0]:g} eV: is it theirs?"
        )
    return References(coeff, source, tuple(remarks))


def _describe_left(left: np.ndarray, sizes: np.ndarray) -> str:
    """Say what a fit leaves: (n,) eV, of structures with (n,) atoms."""
    rms, per_atom = (float(np.sqrt(np.square(v).mean())) for v in (left, left / sizes))
    text = (
        f"the references that were fitted leave {rms:.3g} eV of the energies (root mean square; "
        f"{per_atom:.2g} eV per atom), at most {abs(left).max():.3g} eV"
    )
    if per_atom > BAD_FIT:
        text += ": too much for totals of one kind; other units, energies or settings among them?"
    return text


def _describe_undetermined(rows: np.ndarray, present: np.ndarray) -> Iterator[str]:
    """Name the elements whose reference the compositions, (n, n_elements), leave open."""
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    kept = vectors[values > 1e-8 * values[0]]
    determined = np.square(kept).sum(axis=0) > 1 - 1e-6
    if not determined.all():
        names = ", ".join(chemical_symbols[z] for z in present[~determined])
        yield (
            f"the compositions do not determine the references of {names} one by one: other "
            "compositions get energies that are no better than a guess"
        )
