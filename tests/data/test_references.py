"""Reference energies: which entries of a file belong to elements that its fit knew."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ase.data import atomic_numbers, chemical_symbols

from dens.data.references import fit_references, load_references


def present(path: Path) -> set[str]:
    return {chemical_symbols[z] for z in np.flatnonzero(~np.isnan(load_references(path).coeff))}


def write(path: Path, fill: float, **coeff: float) -> Path:
    values = np.full(100, fill)
    for symbol, value in coeff.items():
        values[atomic_numbers[symbol]] = value
    np.savez(path, coeff=values)
    return path


def test_junk_in_files_without_nan(tmp_path):
    """Zeros, tiny and huge numbers are junk; energies of valence or of all electrons are not."""
    junk = {"I": -0.0046, "Xe": 4e-4, "Tc": 156.4, "Kr": -4690.0, "Br": -23344.0, "He": 5e11}
    path = write(tmp_path / "a.npz", 0.0, X=-4e5, H=-3.4, Cd=-0.21, Hg=0.28, Ta=-16.2, **junk)
    assert present(path) == {"H", "Cd", "Hg", "Ta"}
    path = write(tmp_path / "b.npz", 0.0, H=-13.6, C=-1036.0, O=-2043.0, Au=-5.2e5, He=np.inf)
    assert present(path) == {"H", "C", "O", "Au"}


def test_files_with_nan_are_taken_as_they_are(tmp_path):
    """Whatever a fit gives, the file that it is saved in gives back."""
    path = write(tmp_path / "a.npz", np.nan, H=-876.0, C=0.0, O=-0.004, N=np.inf)
    assert present(path) == {"H", "C", "O"}
    fit = fit_references([(np.array([6, 6, 1]), -2500.0)], "the fit")
    np.savez(tmp_path / "fit.npz", coeff=fit.coeff)
    np.testing.assert_array_equal(load_references(tmp_path / "fit.npz").coeff, fit.coeff)


@pytest.mark.skipif("DENS_DATA" not in os.environ, reason="DENS_DATA names no folder of real data")
@pytest.mark.parametrize(
    ("name", "count", "absent"),
    [
        ("oc20_linref", 56, ["He", "F", "Br", "I", "Xe", "Ce", "Lu"]),
        ("oc22_linfit_coeffs", 57, ["He", "B", "F", "P", "S", "Cl", "Br", "Kr", "Tc", "I", "Xe"]),
    ],
)
def test_published_files(name, count, absent):
    path = Path(os.environ["DENS_DATA"], "linref", f"{name}.npz")
    found = present(path)
    assert len(found) == count
    assert found.isdisjoint(absent)
    coeff, given = load_references(path).coeff[:100], np.load(path)["coeff"]
    known = ~np.isnan(coeff)
    np.testing.assert_array_equal(coeff[known], given[known])
