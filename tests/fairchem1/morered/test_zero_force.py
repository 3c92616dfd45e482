"""Test DeNS models that are told that forces are zero as denoisers, without training."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule
from helpers.structures import make_structure
from helpers.trainers import DENS, EXACT_MODEL

from dens.data.store.records import data_to_atoms
from dens.denoising.config import parse_config
from dens.fairchem1.checkpoints.model_sections import build
from dens.fairchem1.morered.denoisers import Network, ZeroForceDenoiser
from dens.relax.atoms.conversion import Limits, to_structures
from dens.relax.config import RelaxSettings
from dens.relax.loop import RelaxLoop
from dens.relax.structures import Structure, Structures

LADDER = {"sigma_low": 0.01, "sigma_high": 0.3, "num_sigmas": 30}
LADDER |= {"prob": 0.5, "denoising_coefficient": 20.0}


@pytest.fixture(params=[False, True], ids=["sigma", "ladder"])
def denoiser(request) -> ZeroForceDenoiser:
    """Make a denoiser of a model with one sigma, or with a ladder that is told sigma."""
    torch.manual_seed(0)
    section = copy.deepcopy(EXACT_MODEL)
    section["backbone"]["sigma_encoding"] = request.param
    config = parse_config(LADDER if request.param else DENS)
    network = Network(build(section).eval())
    denoiser = ZeroForceDenoiser(network, config)
    # a fresh network's noise may have any size: here the slabs get one of 0.1 Å
    batch, ask = Structures.collate(slabs()), network.ask
    scale = 0.1 / displacement(denoiser, batch)[~batch.fixed].square().mean().sqrt()
    network.ask = lambda data: {"noise": scale * ask(data)["noise"]}
    return denoiser


def slabs() -> list[Structure]:
    rng = np.random.default_rng(0)
    atoms = [data_to_atoms(make_structure(rng, size)) for size in [(2, 2, 2), (1, 2, 3)]]
    return to_structures(atoms, Limits())


def displacement(denoiser, batch: Structures) -> torch.Tensor:
    """Return the displacement that is found, (n_atoms, 3), Å."""
    noise, level = denoiser(batch, None)
    return noise * denoiser.levels.sigma(level)[batch.batch][:, None]


def test_displacements_rotate_with_slabs_and_spare_fixed_atoms(denoiser):
    batch = Structures.collate(slabs())
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    rotation = rotation * torch.det(rotation)
    found = displacement(denoiser, batch)
    rotated = replace(batch, pos=batch.pos @ rotation.T, cell=batch.cell @ rotation.T)
    assert batch.fixed.any()
    assert (found[batch.fixed] == 0).all()
    assert found[~batch.fixed].norm(dim=1).min() > 1e-3
    tolerance = 1e-4 * found.norm(dim=1).max().item()
    torch.testing.assert_close(
        displacement(denoiser, rotated), found @ rotation.T, rtol=0, atol=tolerance
    )


def test_levels_count_the_displacement(denoiser):
    batch = Structures.collate(slabs())
    noise, level = denoiser(batch, None)
    sigma = denoiser.levels.sigma(level)
    free = ~batch.fixed
    for i in range(len(batch)):
        rms = noise[free & (batch.batch == i)].square().mean().sqrt()
        assert rms.item() == pytest.approx(1, abs=0.02)  # of the steps of the levels
    told = torch.tensor([100, 300])
    again, level = denoiser(batch, told)
    assert level.tolist() == told.tolist()
    moved = again * denoiser.levels.sigma(told)[batch.batch][:, None]
    torch.testing.assert_close(moved, noise * sigma[batch.batch][:, None])


def test_molecules_get_a_box_in_which_no_atom_sees_an_image(denoiser):
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    boxed = atoms.copy()
    boxed.set_cell([40.0, 41.0, 42.0])
    boxed.pbc = True
    boxed.center()
    alone, in_box = to_structures([atoms, boxed], Limits())
    assert alone.cell is None
    found = [displacement(denoiser, Structures.collate([s])) for s in (alone, in_box)]
    tolerance = 1e-4 * found[0].norm(dim=1).max().item()
    torch.testing.assert_close(*found, rtol=0, atol=tolerance)
    torch.testing.assert_close(found[0].sum(0), torch.zeros(3).double(), rtol=0, atol=1e-5)
    both = Structures.collate([alone, *slabs()])
    joint = displacement(denoiser, both)[: len(atoms)]
    torch.testing.assert_close(joint, found[0], rtol=0, atol=tolerance)


def test_sigma_is_told_once_guessed_and_once_found(denoiser, monkeypatch):
    asked, ask = [], denoiser.network.ask

    def record(data):
        asked.append(data.clone())
        return ask(data)

    monkeypatch.setattr(denoiser.network, "ask", record)
    batch = Structures.collate(slabs())
    denoiser(batch, None)
    for data in asked:
        assert data.noise_forces.eq(0).all()
        assert data.noise_mask.equal(data.fixed == 0)
    told = [data.sigma.tolist() for data in asked]
    if len(denoiser.dens.sigmas) == 1:
        assert told == [pytest.approx([0.1, 0.1])]
        return
    assert told[0] == pytest.approx([0.003**0.5] * 2)
    assert len(told) == 2
    assert all(0.01 <= sigma <= 0.3 for sigma in told[1])
    assert told[1] != told[0]


@pytest.mark.parametrize(("given", "share"), [(None, 1.0), (0.5, 0.5)])
def test_steps_are_undamped_unless_damping_is_given(denoiser, given, share):
    """A step then ends where the displacement says; damping is the share of it that is left."""
    structure = slabs()[0]
    settings = RelaxSettings(max_calls=2, damping=given)
    loop = RelaxLoop([structure], denoiser, settings, keep_history=True)
    ((_, relaxed),) = list(loop)
    moved = displacement(denoiser, Structures.collate([structure]))
    expected = structure.pos - share * moved
    torch.testing.assert_close(relaxed.history[1], expected, rtol=0, atol=1e-6)
