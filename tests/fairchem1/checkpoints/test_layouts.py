"""Foreign layouts: models of dens reproduce published DeNS checkpoints and plain ones."""

import pytest
import torch
from helpers.checkpoint_files import (
    flatten,
    foreign_model,
    foreign_trainer,
    plain_trainer,
    randomise,
    save,
)
from helpers.structures import make_batch
from helpers.trainers import DENS

from dens.denoising.config import parse_config
from dens.denoising.corruption import attach, corrupt
from dens.fairchem1.checkpoints.export import export
from dens.fairchem1.checkpoints.layouts import FAIRCHEM_DENS, FLAT, FLAT_DENS, read
from dens.fairchem1.checkpoints.model_sections import build, dens_section
from dens.random import make_generator

LADDER = {"sigma": None, "sigma_low": 0.02, "sigma_high": 0.2, "num_sigmas": 3}


def run(model, batch):
    torch.manual_seed(0)  # the frames of edges are random
    with torch.no_grad():
        return model(batch)


def imported(path, raw=False, **backbone):
    checkpoint = read(path, raw)
    model = build(dens_section(checkpoint.model, **backbone)).eval()
    model.load_state_dict({**model.state_dict(), **checkpoint.weights})
    return checkpoint, model


def corrupted_pair(ratio):
    """Make a corrupted batch with our fields, and an equal one with fairchem's."""
    batch = make_batch(3)
    settings = {**DENS, **LADDER, "prob": 1.0, "granularity": "batch", "corrupt_ratio": ratio}
    generator = make_generator(0, 0, 0)
    corruption = corrupt(
        batch.pos, batch.batch, batch.natoms, parse_config(settings), generator, fixed=batch.fixed
    )
    attach(batch, corruption, batch.forces)
    theirs = make_batch(3)
    theirs.pos, theirs.noise_mask = batch.pos.clone(), batch.noise_mask.clone()
    theirs.sigmas = batch.sigma[batch.batch][:, None]
    theirs.denoising_pos_forward = True
    return batch, theirs


@pytest.mark.parametrize("sigma", [False, True], ids=["forces", "forces and sigma"])
@pytest.mark.parametrize("layout", [FAIRCHEM_DENS, FLAT_DENS])
def test_dens_of_others(dataset, tmp_path, layout, sigma):
    """Outputs are equal on clean and corrupted structures; so is the export on clean ones."""
    trainer = foreign_trainer(
        dataset,
        tmp_path,
        foreign_model(stress=layout == FAIRCHEM_DENS, use_noise_schedule_sigma_encoding=sigma),
    )
    randomise(trainer)
    reference = trainer.model.eval()
    assert reference.backbone.force_embedding.bias.abs().min() > 1e-4
    path = save(trainer)
    if layout == FLAT_DENS:
        path = flatten(path, "equiformer_v2_denoising_pos")

    for average in (False, True):
        if average:
            trainer.ema.copy_to()
        checkpoint, model = imported(path, raw=not average)
        assert checkpoint.layout == layout
        stock = build(export(checkpoint, "")["config"]["model"]).eval()
        stock.load_state_dict(export(checkpoint, "")["state_dict"])
        expected, out, exported = (run(m, make_batch(3)) for m in (reference, model, stock))
        assert set(expected) == set(out) == set(exported)
        for name in expected:
            torch.testing.assert_close(out[name], expected[name], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(exported[name], expected[name], rtol=1e-5, atol=1e-5)

        ours, theirs = corrupted_pair(0.5)
        expected, out = run(reference, theirs), run(model, ours)
        mask = ours.noise_mask[:, None]
        assert 0 < mask.sum() < len(mask)
        vectors = torch.where(mask, out["noise"], out["forces"])
        torch.testing.assert_close(out["energy"], expected["energy"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vectors, expected["forces"], rtol=1e-5, atol=1e-5)


def test_flat_plain_model(dataset, tmp_path):
    trainer = plain_trainer(dataset, tmp_path)
    randomise(trainer)
    trainer_path = save(trainer)
    checkpoint, model = imported(flatten(trainer_path), raw=True, fast=False)
    assert checkpoint.layout == FLAT
    expected, out = run(trainer.model.eval(), make_batch(2)), run(model, make_batch(2))
    assert all(torch.equal(out[name], expected[name]) for name in ("energy", "forces"))


def test_element_references_of_the_flat_layout(dataset, tmp_path):
    """energy_lin_ref, in units of the model's normaliser, becomes references in eV."""
    trainer = plain_trainer(dataset, tmp_path)
    path = flatten(save(trainer))
    content = torch.load(path, weights_only=True)
    content["state_dict"]["module.module.energy_lin_ref"] = torch.linspace(-1, 1, 90)
    content["config"]["model_attributes"].update(load_energy_lin_ref=True, use_energy_lin_ref=True)
    del content["ema"]
    torch.save(content, path)
    stock = export(read(path), "")
    expected = 2.0 * torch.linspace(-1, 1, 90)
    assert torch.equal(stock["elementrefs"]["energy"]["element_references"], expected)
    assert stock["config"]["model"]["backbone"]["use_energy_lin_ref"] is False
