"""Test stress from labels to records: sign, units, parts, vacuum, checks, statistics."""

from __future__ import annotations

import importlib

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.build import fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from click.testing import CliRunner
from helpers.converted import convert
from helpers.hosts import MAJOR
from helpers.stressed import some_frames, strains_of, write_frames

from dens.cli import commands
from dens.data.bulk.bulk_demo import make_bulk_demo
from dens.data.bulk.crystals import label, strained
from dens.data.bulk.stress_labels import Frame, StressScale, find_stress_faults, parts_of
from dens.data.store.by_format import open_folder

KBAR = -1602.1766  # VASP's, per eV/Å^3


@pytest.fixture(scope="module")
def frames():
    return some_frames()


def test_stress_is_the_derivative_of_the_energy_along_strains(frames):
    """ASE's sign: dE/d(strain) / V, positive where the cell would contract."""
    atoms, step = frames[0].atoms, 1e-4
    for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)):
        strain = np.zeros((3, 3))
        strain[i, j] += step / 2
        strain[j, i] += step / 2
        up, down = (label(strained(atoms, sign * strain)).energy for sign in (1, -1))
        slope = (up - down) / (2 * step * atoms.get_volume())
        assert frames[0].stress[i, j] == pytest.approx(slope, abs=1e-5)
    stretched = strained(frames[0].atoms, 0.08 * np.eye(3))
    assert np.trace(label(stretched).stress) > 0


def test_parts_are_those_of_fairchems_losses(frames):
    if MAJOR != "1":
        pytest.skip("fairchem-core 2 has no parts of a stress")
    import dens.fairchem1  # noqa: F401  # before fairchem

    utils = importlib.import_module("fairchem.core.common.utils")
    for frame in frames:
        flat = torch.tensor(frame.stress, dtype=torch.float32).reshape(9)
        irreps = (utils.cg_change_mat(2) @ flat).numpy()
        isotropic, anisotropic = parts_of(frame.stress)
        assert isotropic == pytest.approx(irreps[0], abs=1e-6)
        np.testing.assert_allclose(np.sort(anisotropic), np.sort(irreps[4:]), atol=1e-6)


@pytest.mark.parametrize(
    ("factor", "message"),
    [(1, None), (-1, "-1 times"), (KBAR, "-0.00062 times"), (-KBAR / 10, "0.0062 times")],
    ids=["eV/Å^3", "VASP's sign", "kbar", "GPa"],
)
def test_sign_and_unit_are_checked_by_strains(frames, factor, message):
    scale = StressScale()
    start = strained(frames[0].atoms, 0.03 * np.eye(3))
    for found in strains_of(start, 12, size=0.004):
        atoms = found.atoms
        parts = (atoms.positions, atoms.cell.array, found.energy, found.forces)
        scale.add(atoms.numbers, Frame(*parts, factor * found.stress))
    findings = scale.findings()
    assert bool(findings) == (message is not None)
    assert message is None or message in findings[0]


SLAB = fcc111("Cu", (1, 1, 3), vacuum=6.0, periodic=True)
ACROSS = np.diag([0.01, 0.01, 0.01])


@pytest.mark.parametrize(
    ("stress", "cell", "kinds"),
    [
        (np.diag([0.01, 0.02, 0.0]), SLAB.cell.array, []),
        (ACROSS, SLAB.cell.array, ["stress vacuum"]),
        (ACROSS, 4 * np.eye(3), []),
        (ACROSS, None, ["stress vacuum"]),
        (ACROSS + np.eye(3)[::-1] * [[1], [0], [0]], 4 * np.eye(3), ["stress"]),
        (ACROSS * np.nan, 4 * np.eye(3), ["stress"]),
    ],
    ids=["slab", "across vacuum", "crystal", "open", "asymmetric", "NaN"],
)
def test_faults_of_a_stress(stress, cell, kinds):
    assert list(find_stress_faults(stress, SLAB.positions, cell)) == kinds


def test_conversion_keeps_it_and_spreads_it_over_more_vacuum(tmp_path):
    """A slab that is open across gets a longer cell, and the virial stays."""
    wide = SLAB.copy()
    virial = np.diag([0.3, 0.5, 0.0])
    labels = {"energy": 1.0, "forces": np.zeros((3, 3))}
    wide.pbc = (True, True, False)
    wide.calc = SinglePointCalculator(wide, **labels, stress=virial / wide.get_volume())
    ase.io.write(tmp_path / "a.traj", wide)
    (record,), output = convert(tmp_path / "out", tmp_path / "a.traj")
    volume = float(torch.linalg.det(record.cell[0]))
    np.testing.assert_allclose(record.stress[0] * volume, virial, atol=1e-5)
    assert "1 structures with stress, which is kept in eV/Å^3, positive where" in output
    (record,), output = convert(tmp_path / "open", tmp_path / "a.traj", "--pbc", "FFF")
    assert "stress" not in record
    assert "the stress of 1 structures without periodic boundaries is not kept" in output


def test_demo_statistics_and_check(tmp_path):
    summary = make_bulk_demo(tmp_path / "demo", train_frames=20, val_frames=10)
    assert "stress rms" in summary.table()
    assert (tmp_path / "demo" / "README.txt").read_text().endswith(summary.table() + "\n")
    records = open_folder(tmp_path / "demo" / "train")
    assert len(records) == 20
    assert all(record.stress.shape == (1, 3, 3) for record in records)
    result = CliRunner().invoke(commands, ["data", "stats", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    found = yaml.safe_load(result.stdout)["dataset"]["train"]["transforms"]["normalizer"]
    parts = [parts_of(record.stress[0].double().numpy()) for record in records]
    isotropic, anisotropic = (np.array(part) for part in zip(*parts, strict=True))
    expected = {"mean": isotropic.mean(), "stdev": isotropic.std()}
    assert found["stress_isotropic"] == pytest.approx(expected)
    rms = np.sqrt((anisotropic**2).mean())
    assert found["stress_anisotropic"] == pytest.approx({"mean": 0.0, "stdev": rms})
    result = CliRunner().invoke(commands, ["data", "check", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    assert "stress" not in result.output


def test_check_finds_the_other_sign(tmp_path, frames):
    wrong = [frame._replace(stress=-frame.stress) for frame in strains_of(frames[0].atoms, 12)]
    src = write_frames(tmp_path / "wrong", wrong)
    result = CliRunner().invoke(commands, ["data", "check", src])
    assert "warning: the sign or the unit of the stress looks wrong" in result.output
