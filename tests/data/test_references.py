"""Reference energies: which entries of a file belong to elements that its fit knew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.data import atomic_numbers, chemical_symbols

from dens.data.references import fit_references, load_references
from dens.data.survey.consistency import EnergyScale


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


@pytest.mark.parametrize(
    ("name", "count", "absent"),
    [
        ("oc20_linref", 56, ["He", "F", "Br", "I", "Xe", "Ce", "Lu"]),
        ("oc22_linfit_coeffs", 57, ["He", "B", "F", "P", "S", "Cl", "Br", "Kr", "Tc", "I", "Xe"]),
    ],
)
def test_published_files(real_data, name, count, absent):
    path = real_data / "linref" / f"{name}.npz"
    found = present(path)
    assert len(found) == count
    assert found.isdisjoint(absent)
    coeff, given = load_references(path).coeff[:100], np.load(path)["coeff"]
    known = ~np.isnan(coeff)
    np.testing.assert_array_equal(coeff[known], given[known])


CU, OX = 29, 8


@pytest.mark.parametrize(
    ("samples", "expected", "absent"),
    [
        (
            [([CU] * n, -35_000.0) for n in (1, 2, 3, 8)],
            ["eV per atom), at most 2.", "too much for totals", "of 1 to 8 atoms, have the same"],
            ["do not determine"],
        ),
        (
            [([CU] * n + [OX] * m, -3.4 * n - 7.1 * m) for n in (4, 5) for m in (0, 1)],
            ["leave 0", "at most 0 eV"],
            ["too much", "do not determine", "same energy"],
        ),
        (
            [([6, 6, 8, *[1] * 6], -46.0 + 0.01 * i) for i in range(5)],
            ["do not determine the references of H, C, O one by one"],
            ["too much", "same energy"],
        ),
        (
            [([CU] * n + [OX, OX, 1], -3.5 * n - 20.0) for n in (4, 5, 6)],
            ["do not determine the references of H, O one by one"],
            ["Cu", "too much"],
        ),
        ([([CU] * 4, -14.0), ([CU] * 4, -17_414.0)], ["too much for totals of one kind"], ["same"]),
    ],
    ids=["one energy", "exact", "one molecule", "in one ratio", "another energy"],
)
def test_remarks_on_a_fit(samples, expected, absent):
    fit = fit_references([(np.array(numbers), energy) for numbers, energy in samples], "the fit")
    text = "\n".join(fit.remarks)
    for fragment in expected:
        assert fragment in text
    for fragment in absent:
        assert fragment not in text


def test_check_tells_one_energy_of_all_sizes():
    scale = EnergyScale()
    for n in (1, 2, 8):
        scale.add(np.full(n, CU), -35_000.0)
    assert scale.unit_findings() == [
        "all structures, of 1 to 8 atoms, have the same energy, -35000 eV"
    ]
