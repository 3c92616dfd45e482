r"""Linear per-element reference energies.

.. math:: E_{ref} = \sum_i c(Z_i)

What remains of a total energy after its reference is of the order of eV, which float32 keeps;
of -900 eV it keeps 0.06 meV, of -20,000 eV 2 meV.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

N_ELEMENTS = len(chemical_symbols)  # 119: atomic number 0 is no element

# eV; the files that fairchem ships hold 0, or 1e5 and more, for the elements that the fit never saw
JUNK = 1e5


@dataclass(frozen=True)
class References:
    """``coeff``: (119,) eV per atom by atomic number, NaN for absent elements; ``source``: their
    origin, for messages."""

    coeff: np.ndarray
    source: str

    def energy(self, numbers: np.ndarray) -> float:
        """The reference energy in eV of atoms with these atomic numbers, (n_atoms,).

        Raises:
            ValueError: an element that is absent from the fit.
        """
        total = float(self.coeff[numbers].sum())
        if np.isnan(total):
            absent = np.unique(np.asarray(numbers)[np.isnan(self.coeff[numbers])])
            names = ", ".join(chemical_symbols[z] for z in absent)
            raise ValueError(f"no reference energy for {names} in {self.source}")
        return total


def load_references(path: str | Path) -> References:
    """References from an ``.npz`` with the key ``coeff``: eV per atom, by atomic number.

    NaN, 0, and magnitudes of 1e5 and more mean that the element is absent.

    Raises:
        ValueError: not such a file.
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
    coeff = np.full(N_ELEMENTS, np.nan)
    coeff[: len(given)] = np.where((given == 0) | ~(np.abs(given) < JUNK), np.nan, given)
    return References(coeff, str(path))


def fit_references(samples: Iterable[tuple[np.ndarray, float]], source: str) -> References:
    """Least squares fit to (atomic numbers, energy in eV) of structures; the solution of smallest
    norm where these leave a choice. Rounded to 1e-6 eV, so that it does not depend on the last
    bits of the linear algebra.

    Raises:
        ValueError: no structure.
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
    present = rows.any(axis=0)
    solution = np.linalg.lstsq(rows[:, present] * weight[:, None], means * weight, rcond=None)[0]
    coeff = np.full(N_ELEMENTS, np.nan)
    coeff[present] = solution.round(6)
    return References(coeff, source)
