"""ASE calculators: the documented relaxation, molecules, and the fast path."""

import re

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS
from fairchem.core.datasets import data_list_collater
from helpers.checkpoint_files import dens_trainer, save, trained
from helpers.paths import DOCS
from helpers.stock_fairchem import same_frames
from helpers.trainers import MODEL

import dens
from dens.fairchem1.checkpoints.export import export_checkpoint
from dens.fairchem1.checkpoints.inspect import inspect_checkpoint

PAGE = DOCS / "checkpoints.md"
WITHOUT_GRID = {"use_gate_act": True, "use_grid_mlp": False}  # exactly equivariant


def test_the_documented_relaxation(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(dens_trainer(dataset, tmp_path / "run", MODEL)).rename("checkpoint.pt")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(example.splitlines()) <= 15
    exec(compile(example.replace("steps=200", "steps=3"), str(PAGE), "exec"), {})
    assert re.search(r"converged: (True|False), energy: -?\d+\.\d{3} eV", capsys.readouterr().out)
    frames = read("relaxation.traj", ":")
    assert len(frames) == 4
    lowest = frames[0].get_tags() == 3
    moved = np.abs(frames[-1].positions - frames[0].positions).max(axis=1)
    assert (moved[lowest] == 0).all()
    assert (moved[~lowest] > 0).any()
    assert frames[-1].get_forces().shape == (13, 3)


def test_calculator_is_a_public_name():
    assert dens.load_calculator.__module__ == "dens.fairchem1.checkpoints.calculator"
    with pytest.raises(ValueError, match=r"checkpoint missing\.pt does not exist"):
        dens.load_calculator("missing.pt")


def results(path, atoms, **options):
    calculator = dens.load_calculator(path, cpu=True, **options)
    calculator.calculate(atoms, ["energy"], [])
    return calculator, calculator.results


@pytest.mark.parametrize("use_pbc", [False, True])
def test_molecules(dataset, tmp_path, use_pbc):
    """A molecule has equal energy and forces without a cell and in a wide one."""
    backbone = {**MODEL["backbone"], **WITHOUT_GRID, "use_pbc": use_pbc}
    path = save(dens_trainer(dataset, tmp_path / "run", {**MODEL, "backbone": backbone}))
    boxed = molecule("CH3CH2OH", vacuum=10.0, pbc=True)
    bare = Atoms(boxed.symbols, boxed.positions)
    _, expected = results(path, bare)
    _, found = results(path, boxed)
    assert expected["forces"].shape == (9, 3)
    assert np.abs(expected["forces"]).max() > 1e-3
    assert found["energy"] == pytest.approx(expected["energy"], abs=1e-5)
    np.testing.assert_allclose(found["forces"], expected["forces"], atol=1e-5)


def test_fast_path(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "rand_like", same_frames)
    path = save(dens_trainer(dataset, tmp_path / "run", MODEL))
    slab = fcc111("Cu", size=(2, 2, 3), vacuum=8.0, periodic=True)
    add_adsorbate(slab, "O", height=1.3, position="fcc")
    plain, expected = results(path, slab, fast=False)
    fast, found = results(path, slab, fast=True)
    assert not plain.trainer._unwrapped_model.backbone.fast
    assert fast.trainer._unwrapped_model.backbone.fast
    assert found["energy"] == pytest.approx(expected["energy"], abs=1e-6)
    np.testing.assert_allclose(found["forces"], expected["forces"], atol=1e-6)


# ---- properties, and structures without an answer ---------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Checkpoint of a model with a stress head, trained on Cu and O."""
    return save(trained(tmp_path_factory.mktemp("stress"), stress=True))


@pytest.fixture
def slab(checkpoint):
    atoms = fcc111("Cu", size=(2, 2, 2), vacuum=6.0, periodic=True)
    add_adsorbate(atoms, "O", height=1.3, position="fcc")
    atoms.calc = dens.load_calculator(checkpoint, cpu=True)
    return atoms


def test_stress_and_free_energy(slab):
    assert slab.get_potential_energy(force_consistent=True) == slab.get_potential_energy()
    assert slab.calc.results["free_energy"] == slab.calc.results["energy"]
    forces = slab.get_forces()
    assert slab.get_forces() is not forces  # a copy of what was calculated once
    np.testing.assert_array_equal(slab.get_forces(), forces)

    voigt, full = slab.get_stress(), slab.get_stress(voigt=False)
    predicted = slab.calc.trainer.predict(as_batch(slab), per_image=False, disable_tqdm=True)[
        "stress"
    ].view(3, 3)
    expected = ((predicted + predicted.T) / 2).cpu().numpy()
    np.testing.assert_allclose(full, expected, atol=2e-2 * np.abs(expected).max() + 1e-5)
    order = [full[0, 0], full[1, 1], full[2, 2], full[1, 2], full[0, 2], full[0, 1]]
    np.testing.assert_array_equal(voigt, order)
    relaxation = BFGS(FrechetCellFilter(slab), logfile=None)
    relaxation.run(steps=1)
    assert "stress" in slab.calc.results

    molecule_in_space = Atoms("CuO", [[0, 0, 0], [0, 0, 2.0]], calculator=slab.calc)
    molecule_in_space.get_forces()
    with pytest.raises(PropertyNotImplementedError):
        molecule_in_space.get_stress()


def as_batch(atoms):
    return data_list_collater([atoms.calc.a2g.convert(atoms)], otf_graph=True)


def test_a_model_without_stress_says_so(dataset, tmp_path):
    path = save(dens_trainer(dataset, tmp_path / "run", MODEL))
    slab = fcc111("Cu", size=(2, 2, 2), vacuum=6.0, periodic=True)
    slab.calc = dens.load_calculator(path, cpu=True)
    message = "stress is not among the outputs .*energy, forces.*needs a model with a stress head"
    with pytest.raises(PropertyNotImplementedError, match=message):
        BFGS(FrechetCellFilter(slab), logfile=None).run(steps=1)


def changed(atoms, symbol=None, **arrays):
    atoms = atoms.copy()
    if symbol is not None:
        atoms.symbols[2] = symbol
    for name, value in arrays.items():
        setattr(atoms, name, value)
    return atoms


def moved(atoms, position):
    positions = atoms.positions.copy()
    positions[2] = position
    return changed(atoms, positions=positions)


BAD = {
    "no atoms": (lambda a: Atoms(), "expected a structure with atoms, got none"),
    "dummy": (lambda a: changed(a, "X"), r"atom 2 \(X\) must be an element, got a dummy \(Z = 0\)"),
    "heavy": (
        lambda a: changed(a, "Og"),
        r"atom 2 \(Og\) must have an atomic number below 90, the model's max_num_elements, got 118",
    ),
    "first beyond": (lambda a: changed(a, "Th"), r"atom 2 \(Th\) .* below 90, .* got 90"),
    "not trained": (
        lambda a: changed(a, "Pt"),
        r"atom 2 \(Pt\) must be of an element in the training data of the model, O, Cu$",
    ),
    "nan": (lambda a: moved(a, np.nan), r"atom 2 \(Cu\) must be at a finite position, got \[nan"),
    "infinite": (lambda a: moved(a, [0, np.inf, 0]), r"atom 2 \(Cu\) .* got \[0.0, inf, 0.0\] Å"),
    "coincident": (
        lambda a: moved(a, a.positions[8] + [0, 0, 0.002]),
        r"atom 2 \(Cu\) and atom 8 \(O\) must be 0.01 Å apart or more, got 0.002 Å",
    ),
    "image": (
        lambda a: moved(a, a.positions[0] + a.cell[0]),
        r"atom 0 \(Cu\) and atom 2 \(Cu\) must be 0.01 Å apart",
    ),
    "flat": (
        lambda a: changed(a, cell=np.diag([5.0, 5, 0]), pbc=True),
        "expected a cell with a volume in its periodic directions",
    ),
    "parallel": (
        lambda a: changed(a, cell=[[5, 0, 0], [5, 0, 0], [0, 0, 5]], pbc=(True, True, False)),
        "expected a cell with a volume in its periodic directions",
    ),
    "cell": (lambda a: changed(a, cell=np.diag([np.nan, 5, 5])), "the cell must be finite"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_structures_without_an_answer(slab, make, message):
    atoms = make(slab)
    atoms.calc = slab.calc
    with pytest.raises(ValueError, match=message) as error:
        atoms.get_potential_energy()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fast", [True, False])
def test_a_slab_without_third_cell_vector(checkpoint, fast):
    """ASE's slabs have none unless they get vacuum; that direction is not periodic."""
    bare = fcc111("Cu", size=(2, 2, 2))
    assert bare.cell.rank == 2
    high = bare.copy()
    high.center(vacuum=10.0, axis=2)
    bare.calc, high.calc = (dens.load_calculator(checkpoint, cpu=True, fast=fast) for _ in "ab")
    high.calc.trainer.set_seed(0)
    expected = high.get_forces()
    bare.calc.trainer.set_seed(0)
    np.testing.assert_allclose(bare.get_forces(), expected, atol=1e-4)
    assert bare.calc.calculation_required(bare, ["energy"]) is False


def test_trained_elements_are_recorded(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "eqv2.pt")
    assert torch.load(tmp_path / "eqv2.pt", weights_only=True)["trained_elements"] == [8, 29]
    assert re.search(r"trained elements +O, Cu\n", inspect_checkpoint(checkpoint))
    atoms = Atoms("CuPt", [[0, 0, 0], [0, 0, 2.0]])
    atoms.calc = dens.load_calculator(tmp_path / "eqv2.pt", cpu=True)
    with pytest.raises(ValueError, match=r"atom 1 \(Pt\) must be of an element in"):
        atoms.get_forces()


def test_the_record_goes_on(dataset, tmp_path):
    """A start from a checkpoint without record leaves the elements unknown, others are added to."""
    first = dens_trainer(dataset, tmp_path / "first", MODEL)
    first.train(disable_eval_tqdm=True)
    path = save(first)
    content = torch.load(path, weights_only=True)
    content["dens"]["elements"] = [1, 8]
    torch.save(content, tmp_path / "known.pt")
    del content["dens"]["elements"]
    torch.save(content, tmp_path / "unknown.pt")
    optim = {"max_epochs": 3}
    for name, expected in {"known": [1, 8, 29], "unknown": None}.items():
        second = dens_trainer(dataset, tmp_path / name, MODEL, optim=optim)
        second.load_checkpoint(str(tmp_path / f"{name}.pt"))
        second.train(disable_eval_tqdm=True)
        assert torch.load(save(second), weights_only=True)["dens"].get("elements") == expected
