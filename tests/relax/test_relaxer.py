"""Test the optimizer for one ASE structure, batches of copies, and structures that are refused."""

import io
import logging

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength, FixCartesian
from helpers.denoisers import SpringDenoiser, chain

from dens.relax.atoms.relaxer import Relaxer
from dens.relax.config import RelaxSettings
from dens.relax.loop import relax_structures
from dens.settings import ConfigError


def atoms_chain(n_atoms=8, seed=1, noise=0.2, n_fixed=0) -> Atoms:
    structure = chain(n_atoms, seed, noise)
    atoms = Atoms(structure.numbers.numpy(), structure.pos.numpy(), info={"name": seed})
    if n_fixed:
        atoms.set_constraint(FixAtoms(range(n_fixed)))
    return atoms


def slab() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=7.0)
    add_adsorbate(atoms, "O", 1.3, "fcc")
    atoms.set_constraint(FixAtoms(mask=atoms.positions[:, 2] < atoms.positions[:, 2].min() + 0.5))
    atoms.rattle(0.05, seed=1)
    return atoms


class Limited(SpringDenoiser):
    """Springs that know hydrogen, boron, carbon and nitrogen."""

    elements = (1, 5, 6, 7)


@pytest.mark.parametrize("name", ["direct", "jt", "itp"])
def test_an_optimizer_for_one_structure(name, tmp_path):
    settings = RelaxSettings(sampler=name)
    atoms = atoms_chain()
    start, log, seen = atoms.positions.copy(), io.StringIO(), []
    relaxer = Relaxer(SpringDenoiser(), settings, seed=5)
    opt = relaxer(atoms, trajectory=tmp_path / "r.traj", logfile=log)
    assert (opt.nsteps, opt.noise_level, opt.converged()) == (0, None, False)
    opt.attach(lambda: seen.append(opt.nsteps), interval=2)
    assert opt.run() is True
    assert opt.converged()

    structure = chain(8, 1, 0.2)
    expected = relax_structures([structure], SpringDenoiser(), settings, seed=5)[0]
    np.testing.assert_array_equal(atoms.positions, expected.pos.numpy())
    assert opt.nsteps == opt.get_number_of_steps() == expected.calls
    assert opt.noise_level == expected.sigmas[-1]
    assert seen == [n for n in range(opt.nsteps + 1) if n % 2 == 0]
    frames = ase.io.read(tmp_path / "r.traj", ":")
    assert len(frames) == opt.nsteps + 1
    np.testing.assert_array_equal(frames[0].positions, start)
    np.testing.assert_array_equal(frames[-1].positions, atoms.positions)
    lines = log.getvalue().splitlines()
    assert "noise level (Å)" in lines[0]
    assert len(lines) == opt.nsteps + 3
    assert lines[-2].split()[-2:] == [f"{opt.noise_level:.4f}", f"{expected.moved:.4f}"]
    assert lines[-1] == f"{name}: {expected.why}"
    assert opt.run() is True  # nothing left to do
    assert opt.nsteps == expected.calls


def test_steps_are_limited_and_continued():
    """At the limit the structure is at the estimate; the next run goes on with the sampler."""
    settings = RelaxSettings(sampler="jt", max_calls=9)
    whole, parts = atoms_chain(), atoms_chain()
    Relaxer(SpringDenoiser(), settings)(whole, logfile=None).run()
    opt = Relaxer(SpringDenoiser(), settings)(parts, logfile=None)
    assert opt.run(steps=3) is False
    short = settings.model_copy(update={"max_calls": 3})
    expected = relax_structures([chain(8, 1, 0.2)], SpringDenoiser(), short)[0]
    np.testing.assert_array_equal(parts.positions, expected.pos.numpy())
    assert list(opt.irun(steps=0)) == [False]
    opt.run()
    np.testing.assert_array_equal(parts.positions, whole.positions)
    assert opt.nsteps == 9


def test_positions_changed_between_steps_count():
    denoiser = SpringDenoiser()
    atoms = atoms_chain()
    run = Relaxer(denoiser)(atoms, logfile=None).irun()
    next(run), next(run)
    atoms.positions += [0, 0, 5.0]
    given = atoms.positions.copy()
    next(run)
    np.testing.assert_array_equal(denoiser.asked[-1][0].pos.numpy(), given)


def test_forces_count_where_they_are_asked_for():
    atoms = molecule("H2O")
    with pytest.raises(ValueError, match=r"^fmax = 0.05 needs forces, but .* has no calculator"):
        Relaxer(SpringDenoiser())(atoms, logfile=None).run(fmax=0.05)
    atoms.calc = EMT()
    opt = Relaxer(SpringDenoiser())(atoms, logfile=None)
    assert opt.run(fmax=1e-6) is False
    assert opt.outcome.converged
    assert opt.converged(np.zeros((3, 3)))
    assert opt.run(fmax=1e6) is True


@pytest.mark.parametrize("name", ["direct", "jt"])
def test_copies_are_relaxed_in_batches(name):
    """As one by one for direct; nothing that was given changes."""
    given = [atoms_chain(n, seed=i, n_fixed=i % 2) for i, n in enumerate((8, 3, 12, 5))]
    given[0].calc = EMT()
    before = [atoms.copy() for atoms in given]
    settings = RelaxSettings(sampler=name, batch_atoms=20, max_calls=10)
    relaxer = Relaxer(SpringDenoiser(), settings)
    results = relaxer.relax_many(given, keep_history=True)
    order = [number for number, _ in relaxer.iter_many(given)]
    assert sorted(order) == [0, 1, 2, 3]
    for atoms, old, (new, relaxed) in zip(given, before, results, strict=True):
        assert atoms == old
        assert new.calc is None
        assert new.info == atoms.info
        np.testing.assert_array_equal(new.positions, relaxed.pos.numpy())
        assert len(relaxed.history) == relaxed.calls
        held = [i for c in atoms.constraints for i in c.index]
        np.testing.assert_array_equal(new.positions[held], atoms.positions[held])
        if name == "direct":
            relaxer(atoms, logfile=None).run()
            np.testing.assert_allclose(atoms.positions, new.positions, atol=1e-9)
    assert relaxer.relax_many([]) == []


def test_fixed_atoms_stay_to_the_last_bit():
    atoms = atoms_chain(n_fixed=3)
    atoms.positions += 1000 / 3
    start = atoms.positions.copy()
    opt = Relaxer(SpringDenoiser(), RelaxSettings(sampler="jt", max_calls=5))(atoms, logfile=None)
    for _ in opt.irun():
        np.testing.assert_array_equal(atoms.positions[:3], start[:3])
    assert (atoms.positions[3:] != start[3:]).all()


def test_slabs_become_periodic_in_all_directions(caplog):
    """One line says so; the structure keeps its own boundaries and cell."""
    open_slabs = [slab(), slab()]
    open_slabs[1].cell[2] = 0
    closed = slab()
    closed.pbc = True
    for atoms in open_slabs:
        atoms.pbc = (True, True, False)
    denoiser = SpringDenoiser()
    with caplog.at_level(logging.WARNING):
        results = Relaxer(denoiser).relax_many([*open_slabs, closed])
    (line,) = caplog.messages
    assert line.startswith(
        "2 of 3 structures are periodic in some directions only, and are relaxed"
    )
    assert "Å of vacuum" in line
    batch, _ = denoiser.asked[0]
    assert batch.pbc.all()
    assert (torch.linalg.det(batch.cell) > 100).all()
    for atoms, (new, _) in zip(open_slabs, results, strict=False):
        assert new.pbc.tolist() == [True, True, False]
        np.testing.assert_array_equal(new.cell, atoms.cell)
    np.testing.assert_allclose(results[0].atoms.positions, results[2].atoms.positions)


def changed(atoms: Atoms, **attributes) -> Atoms:
    for name, value in attributes.items():
        if name == "constraint":
            atoms.set_constraint(value)
        else:
            setattr(atoms, name, value)
    return atoms


def narrow() -> Atoms:
    atoms = Atoms("C2", [[0, 0, 0], [0, 0, 1.5]], cell=[4, 4, 6])
    return changed(atoms, pbc=(True, True, False))


REFUSED = {
    "another constraint": (
        lambda: changed(molecule("CH4"), constraint=FixBondLength(0, 1)),
        "expected constraints that hold atoms entirely, such as FixAtoms, got FixBondLength",
    ),
    "held in part": (
        lambda: changed(molecule("CH4"), constraint=FixCartesian([0], mask=(1, 0, 0))),
        "such as FixAtoms, got FixCartesian",
    ),
    "no vacuum": (narrow, "set its pbc to True if the cell is that of a crystal"),
    "no free atom": (
        lambda: changed(molecule("CH4"), constraint=FixAtoms(range(5))),
        "expected a free atom, all 5 are fixed",
    ),
    "no atom": (Atoms, "expected a structure with atoms, got none"),
    "coincident": (lambda: Atoms("C2", [[0, 0, 0]] * 2), "must be 0.01 Å apart or more"),
    "not finite": (
        lambda: changed(Atoms("CN"), positions=[[0, 0, np.nan], [0, 0, 1]]),
        "must be at a finite position",
    ),
    "untrained": (lambda: molecule("H2O"), "in the training data of the model, H, B, C, N"),
    "no volume": (
        lambda: Atoms("C", cell=[1, 1, 0], pbc=True),
        "expected a cell with a volume",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_structures_that_cannot_be_relaxed(make, message):
    denoiser = Limited()
    with pytest.raises(ValueError, match=r"^the structure ") as error:
        Relaxer(denoiser)(make())
    line = str(error.value)
    assert message in line
    assert "\n" not in line
    with pytest.raises(ValueError, match=r"^b\.xyz: ") as error:
        Relaxer(denoiser).relax_many([molecule("CH4"), make()], names=["a.xyz", "b.xyz"])
    assert message in str(error.value)
    assert not denoiser.asked


def test_many_structures_that_cannot_be_relaxed():
    with pytest.raises(ValueError, match="and 5 structures more that cannot be relaxed") as error:
        Relaxer(Limited()).relax_many([molecule("H2O") for _ in range(25)])
    lines = str(error.value).splitlines()
    assert len(lines) == 21
    assert lines[3].startswith(
        "structure 3 (H2O): atom 0 (O) must be of an element in the training"
    )


def test_limits_of_the_denoiser():
    denoiser = SpringDenoiser()
    denoiser.periodic = False
    with pytest.raises(ValueError, match="expected an open structure, as the model reads no cell"):
        Relaxer(denoiser)(slab())
    with pytest.raises(ConfigError, match="stop_level must be < 1000"):
        Relaxer(SpringDenoiser(), RelaxSettings(stop_level=1000))
