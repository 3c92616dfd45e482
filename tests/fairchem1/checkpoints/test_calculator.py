"""ASE calculators: the documented relaxation, molecules, and the fast path."""

import re

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.io import read
from helpers.checkpoint_files import dens_trainer, save
from helpers.paths import DOCS
from helpers.stock_fairchem import same_frames
from helpers.trainers import MODEL

import dens

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
