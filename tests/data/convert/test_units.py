"""Test units of sources: given one by one, named in files, contradicting, or guessed."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from helpers.labelled import label, molecules, write_vasprun
from helpers.program import refused_data as refusal
from helpers.program import run_data as run

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.convert.labels import LabelRules, settle_units
from dens.data.units import UNITS, combine_units, read_named_units

HA, BOHR, RY = units.Hartree, units.Bohr, units.Rydberg
KCAL, KJ = units.kcal / units.mol, units.kJ / units.mol


def read(path: Path) -> list:
    from fairchem.core.datasets.lmdb_dataset import LmdbDataset

    dataset = LmdbDataset({"src": str(path)})
    return [dataset[i] for i in range(len(dataset))]


def write(path: Path, energy: float, length: float, force: float, n: int = 2, **info) -> list:
    """Write `molecules` in units of eV, Å and eV/Å per unit; return them as they were."""
    frames = molecules(n)
    scaled = []
    for frame in frames:
        results = frame.calc.results
        atoms = Atoms(frame.numbers, frame.positions / length)
        atoms.info.update(info)
        scaled.append(label(atoms, results["energy"] / energy, results["forces"] / force))
    ase.io.write(path, scaled, format="extxyz")
    return frames


def compare(records: list, frames: list[Atoms]) -> None:
    for record, frame in zip(records, frames, strict=True):
        assert record.y == pytest.approx(frame.calc.results["energy"], abs=1e-6)
        np.testing.assert_allclose(record.pos, frame.positions, atol=1e-5)
        np.testing.assert_allclose(record.force, frame.calc.results["forces"], atol=1e-4)


# energy, length and force per unit, the options, the same as a frame names it
SINGLE = [
    (HA, 1, HA, ["--energy-unit", "Hartree"], {"energy_unit": "Ha"}),
    (HA, 1, HA / BOHR, ["--energy-unit", "Hartree", "--force-unit", "Hartree/Bohr"], None),
    (HA, BOHR, HA / BOHR, ["--units", "Hartree-Bohr"], {"units": "atomic"}),
    (RY, BOHR, RY / BOHR, ["--energy-unit", "Ry", "--length-unit", "a0"], {"units": "Ry, Bohr"}),
    (KJ, 10, KJ / 10, ["--energy-unit", "kJ/mol", "--length-unit", "nm"], None),
    (KJ, 1, KJ, ["--units", "kJ/mol"], {"Energy-Units": "kJ mol^-1"}),
    (KCAL, 1, KCAL, ["--energy-unit", "kcal/mol"], {"units": "real"}),
    (1e-3, 1, 1e-3, ["--energy-unit", "meV"], {"energy-unit": "meV"}),
    (1, 10, 0.1, ["--length-unit", "nm"], {"position_unit": "nm"}),
    (1, BOHR, 1 / BOHR, ["--length-unit", "Bohr"], {"r_unit": "au"}),
    (1, 1, 1e-3, ["--force-unit", "meV/Å"], {"forces_unit": "meV/Angstrom"}),
    (HA, 1, KCAL, ["--energy-unit", "au", "--force-unit", "kcal/(mol*A)"], None),
    (1, 1, 1, ["--energy-unit", "eV"], {"units": "eV/Å", "force-unit": "eV/Å"}),
]


@pytest.mark.parametrize(("energy", "length", "force", "options", "named"), SINGLE)
def test_units_by_option_and_by_name(tmp_path, energy, length, force, options, named):
    frames = write(tmp_path / "a.xyz", energy, length, force)
    run("convert", tmp_path / "a.xyz", *options, "--out", tmp_path / "out")
    compare(read(tmp_path / "out"), frames)
    if named:
        write(tmp_path / "named.xyz", energy, length, force, **named)
        output = run("convert", tmp_path / "named.xyz", "--out", tmp_path / "named")
        compare(read(tmp_path / "named"), frames)
        assert "as the sources name them" in output
        written = json.loads((tmp_path / "named" / "dens_info.json").read_text())["units"]
        assert written in output


CONTRADICTIONS = [
    ({"energy_unit": "Hartree"}, ["--units", "eV-A"], "it names Hartree as its unit of energy"),
    ({"units": "eV-A"}, ["--length-unit", "nm"], "it names A as its unit of length, but the units"),
    ({"force_unit": "Ha/Bohr"}, ["--energy-unit", "Ha"], "it names Hartree/Bohr as its unit of f"),
    ({"energy_unit": "furlong"}, [], "its energy_unit is 'furlong', which is not known"),
    ({"force-unit": "eV"}, [], "its force-unit is 'eV', which is not known"),
    ({"units": "real", "energy_unit": "eV"}, [], "it names two units of energy: kcal/mol and eV"),
]


@pytest.mark.parametrize(("named", "options", "message"), CONTRADICTIONS)
def test_contradictions(tmp_path, named, options, message):
    path = tmp_path / "a.xyz"
    write(path, 1, 1, 1, **named)
    refused = refusal("convert", path, *options, "--out", tmp_path / "out")
    assert refused.startswith(f"{path}, frame 0: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--energy-unit", "J"], "energy-unit must be one of eV, meV, Hartree, Rydberg, kcal/mol"),
        (["--length-unit", "pm"], "length-unit must be one of A, nm, Bohr, got 'pm'"),
        (["--force-unit", "Hartree"], "force-unit must be an energy per length like eV/Å, got"),
        (
            ["--units", "eV-A", "--force-unit", "eV/nm"],
            "--units and --force-unit are two ways to say the same: give one",
        ),
    ],
)
def test_bad_options(tmp_path, options, message):
    write(tmp_path / "a.xyz", 1, 1, 1)
    out = tmp_path / "out"
    assert refusal("convert", tmp_path / "a.xyz", *options, "--out", out).startswith(message)


def test_unknown_names_give_way_to_options(tmp_path):
    frames = write(tmp_path / "a.xyz", KJ, 1, KJ, units="kilojoules")
    run("convert", tmp_path / "a.xyz", "--units", "kJ/mol", "--out", tmp_path / "out")
    compare(read(tmp_path / "out"), frames)


def test_a_frame_with_other_units_than_the_first(tmp_path):
    path = tmp_path / "a.xyz"
    write(path, 1, 1, 1)
    write(tmp_path / "b.xyz", HA, 1, HA, n=1, energy_unit="Hartree")
    with path.open("a") as file:
        file.write((tmp_path / "b.xyz").read_text())
    refused = refusal("convert", path, "--out", tmp_path / "out")
    assert refused.startswith(f"{path}, frame 2: it names Hartree as its unit of energy")


def test_files_with_different_units(tmp_path):
    write(tmp_path / "a.xyz", HA, 1, HA, energy_unit="Hartree")
    write(tmp_path / "b.xyz", 1, 1, 1)
    refused = refusal("convert", tmp_path, "--out", tmp_path / "out")
    assert refused.startswith("expected sources in the same units, eV-A where none are named, got")
    # VASP's are eV and Å
    named = {"a": combine_units(), "b": None}
    assert settle_units(LabelRules(), named) == LabelRules()
    (tmp_path / "c").mkdir()
    write_vasprun(tmp_path / "c" / "vasprun.xml")
    refused = refusal(
        "convert", tmp_path / "c", "--energy-unit", "Hartree", "--out", tmp_path / "out"
    )
    assert "its units are eV-A, but --units says Hartree-A" in refused


def write_one(path: Path, atoms: Atoms, energy: float) -> Path:
    ase.io.write(path, label(atoms, energy, np.zeros((len(atoms), 3))), format="extxyz")
    return path


@pytest.mark.parametrize(
    ("formula", "energy", "found"),
    [
        ("H2O", -200_600.0, "kJ/mol"),
        ("H2O", -152.8, "Rydberg-Bohr"),
        ("H2O", -47_943.0, "kcal/mol"),
        ("H2O", -2.079e6, "meV"),
        ("H2O", -76.4, "Hartree-Bohr"),
        ("CH4", -40.5, "Hartree-Bohr"),
        ("H2", -730.0, "kcal/mol"),
    ],
)
def test_sizes_that_only_fit_other_units(tmp_path, formula, energy, found):
    path = write_one(tmp_path / "a.xyz", molecule(formula), energy)
    refused = refusal("convert", path, "--out", tmp_path / "out")
    assert f"is that of all electrons in {found}, not in eV: give --units {found}" in refused
    assert ("or --energy-unit" in refused) == ("Bohr" in found)
    run("convert", path, "--units", "eV-A", "--out", tmp_path / "out")
    assert read(tmp_path / "out")[0].y == energy


@pytest.mark.parametrize(
    ("atoms", "energy"), [(molecule("H2"), -1.1), (Atoms("He"), -2.9), (Atoms("H"), -0.54)]
)
def test_small_energies_only_warn(tmp_path, atoms, energy):
    path = write_one(tmp_path / "a.xyz", atoms, energy)
    output = run("convert", path, "--out", tmp_path / "out")
    assert "1 structures with energies that were taken as eV, but also fit all electrons" in output
    assert read(tmp_path / "out")[0].y == energy
    assert "all electrons" not in run("convert", path, "--units", "eV-A", "--out", tmp_path / "o")


def test_names_of_units():
    for text in ("kcal/mol/A", "kcal/(mol*Å)", "kcal mol^-1 Angstrom^-1", "kcal mol-1 Å-1"):
        assert combine_units(force=text).force == pytest.approx(KCAL)
    assert combine_units("Hartree", "Bohr") is UNITS["Hartree-Bohr"]
    assert combine_units("Hartree", "Bohr", "Ha/Bohr") is UNITS["Hartree-Bohr"]
    assert read_named_units({"unit": 5, "units": "metal", "energy": -1.0, "unit_cell": "x"}) == {
        "energy": "eV",
        "length": "A",
    }
