"""The relaxation that the documentation shows."""

import re
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from checkpoint_files import dens_trainer, save
from trainers import MODEL

import dens

DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def test_the_documented_relaxation(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(dens_trainer(dataset, tmp_path / "run", MODEL)).rename("checkpoint.pt")
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 17
    exec(compile(example.replace("steps=200", "steps=3"), str(DOCS), "exec"), {})
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
