"""Test what ASE does with a calculator: NEB, molecular dynamics, vibrations."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.build import add_adsorbate, fcc111
from ase.constraints import FixAtoms
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from helpers.checkpoint_files import save, trained

import dens


@pytest.fixture(scope="module")
def calculator(tmp_path_factory):
    path = save(trained(tmp_path_factory.mktemp("run")))
    return dens.load_calculator(path, cpu=True)


@pytest.fixture
def anew(calculator):
    """Function that computes energy and forces without what the calculator remembers."""

    def compute(atoms):
        atoms = atoms.copy()
        calculator.reset()
        atoms.calc = calculator
        return atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)

    return compute


@pytest.fixture
def slab(calculator):
    atoms = fcc111("Cu", size=(2, 2, 2), vacuum=6.0, periodic=True)
    add_adsorbate(atoms, "O", height=1.3, position="fcc")
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))
    atoms.calc = calculator
    return atoms


def test_nudged_elastic_band(slab, calculator, anew):
    """Images share a calculator; each has the energy and forces of its own positions."""
    images = [slab.copy() for _ in range(4)]
    images[-1].positions[-1] += [1.2, 0.5, 0.1]
    for image in images:
        image.calc = calculator
    band = NEB(images, allow_shared_calculator=True, climb=True, method="improvedtangent")
    band.interpolate(mic=True)
    start = [image.positions.copy() for image in images]
    BFGS(band, logfile=None).run(fmax=1e-4, steps=2)
    assert np.isfinite(band.get_forces()).all()
    for i, (image, before) in enumerate(zip(images, start, strict=True)):
        assert (np.abs(image.positions - before).max() > 0) == (i in (1, 2))
        if i in (1, 2):
            assert band.energies[i] == pytest.approx(anew(image)[0], abs=1e-5)
            np.testing.assert_allclose(band.real_forces[i], anew(image)[1], atol=1e-5)


def test_molecular_dynamics(slab, anew):
    """Two steps give what the formulas of velocity Verlet give with forces computed anew."""
    rng = np.random.default_rng(0)
    slab.set_momenta(rng.normal(size=(len(slab), 3)))  # of the atoms that move
    by_hand, step = slab.copy(), 0.5 * units.fs
    masses = slab.get_masses()[:, None]
    moving = (slab.get_tags() != 2)[:, None]
    momenta = slab.get_momenta()
    forces = np.where(moving, anew(by_hand)[1], 0)
    for _ in range(2):
        momenta = momenta + 0.5 * step * forces
        by_hand.positions += step * momenta / masses
        forces = np.where(moving, anew(by_hand)[1], 0)
        momenta = momenta + 0.5 * step * forces
    VelocityVerlet(slab, timestep=step).run(2)
    np.testing.assert_allclose(slab.positions, by_hand.positions, atol=1e-6)
    np.testing.assert_allclose(slab.get_momenta(), momenta, atol=1e-5)
    assert np.isfinite(slab.get_total_energy())


def test_vibrations(slab, anew, tmp_path):
    """The Hessian is that of central differences of forces computed anew."""
    oxygen, delta = len(slab) - 1, 0.01
    vibrations = Vibrations(slab, indices=[oxygen], name=str(tmp_path / "vib"), delta=delta)
    vibrations.run()
    energies = vibrations.get_energies()
    assert energies.shape == (3,)
    assert np.isfinite(energies).all()
    hessian = np.zeros((3, 3))
    for axis in range(3):
        for sign in (1, -1):
            moved = slab.copy()
            moved.positions[oxygen, axis] += sign * delta
            hessian[axis] -= sign * anew(moved)[1][oxygen] / (2 * delta)
    found = vibrations.get_vibrations().get_hessian_2d()
    np.testing.assert_allclose(found, (hessian + hessian.T) / 2, atol=1e-3)
    assert np.abs(found).max() > 1e-2
