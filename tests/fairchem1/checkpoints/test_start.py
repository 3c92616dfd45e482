"""Fine-tune plain checkpoints, continue published ones, and resume."""

import copy
import logging

import pytest
import torch
from helpers.checkpoint_files import (
    dens_trainer,
    flatten,
    foreign_model,
    foreign_trainer,
    plain_trainer,
    randomise,
    save,
)
from helpers.trainers import DENS, MODEL, STOCK_MODEL

from dens.settings import ConfigError


def validation(trainer):
    torch.manual_seed(0)  # the frames of edges are random
    metrics = trainer.validate(disable_tqdm=True)
    return {name: metrics[name]["metric"] for name in ("energy_mae", "forces_mae")}


@pytest.fixture
def plain(dataset, tmp_path):
    trainer = plain_trainer(dataset, tmp_path / "plain")
    trainer.train(disable_eval_tqdm=True)
    trainer.normalizers["energy"].mean.fill_(-0.3)  # unlike that of the fine-tuning config
    return trainer, save(trainer)


@pytest.mark.parametrize("flat", [False, True], ids=["hydra", "flat"])
def test_fine_tuning_starts_where_the_plain_model_ended(dataset, tmp_path, plain, flat, caplog):
    reference, path = plain
    path = flatten(path) if flat else path
    optim = {"max_epochs": 10, "dens": {**DENS, "sigma": 0.05}}
    trainer = dens_trainer(dataset, tmp_path / "run", MODEL, optim=optim)
    with caplog.at_level(logging.INFO):
        trainer.load_checkpoint(str(path))
    before = validation(trainer)
    assert before == pytest.approx(validation(reference), rel=1e-7)

    assert trainer.step == trainer.epoch == 0
    assert not trainer.optimizer.state
    model = trainer._unwrapped_model
    assert (model.backbone.force_encoding.weight == 0).all()
    forces = model.output_heads["forces"].force_block.state_dict()
    noise = model.output_heads["noise"].force_block.state_dict()
    factor = -1.5 / (15 * 0.05)  # of the forces' normaliser, eV/Å; a stiffness, eV/Å²; sigma, Å
    for name, value in forces.items():
        expected = factor * value if name in ("proj.weight", "proj.bias") else value
        torch.testing.assert_close(noise[name], expected)
    table = next(r.message for r in caplog.records if "Weights from" in r.message)
    assert "taken" in table
    assert "backbone.force_encoding, zero effect" in table
    assert "output_heads.noise, from forces times -2" in table

    trainer.train(disable_eval_tqdm=True)
    assert (model.backbone.force_encoding.weight != 0).any()
    assert validation(trainer)["forces_mae"] < before["forces_mae"]


def test_model_pretrained_and_a_fresh_noise_head(dataset, tmp_path, plain):
    reference, path = plain
    settings = {"path": str(path), "noise_head": "fresh"}
    trainer = dens_trainer(dataset, tmp_path / "run", {**MODEL, "pretrained": settings})
    assert validation(trainer) == pytest.approx(validation(reference), rel=1e-7)
    heads = trainer._unwrapped_model.output_heads
    noise, forces = (heads[name].force_block.proj.weight for name in ("noise", "forces"))
    assert not torch.equal(noise, forces)
    saved = torch.load(save(trainer), weights_only=True)["config"]
    assert "pretrained" not in saved["model"]
    assert saved["task"]["pretrained"] == settings


def test_training_goes_on_from_a_published_model(dataset, tmp_path):
    """Noise head, encoding and normalisers are taken too; the training state starts afresh."""
    theirs = foreign_trainer(dataset, tmp_path / "theirs", foreign_model())
    randomise(theirs)
    theirs.step = 7
    path = save(theirs)
    trainer = dens_trainer(dataset, tmp_path / "ours", MODEL)
    trainer.load_checkpoint(str(path))
    assert validation(trainer) == pytest.approx(validation(theirs), rel=1e-5)
    assert trainer.step == 0
    theirs.ema.copy_to()
    found, expected = trainer._unwrapped_model, theirs._unwrapped_model
    weight = found.backbone.force_encoding.weight
    assert torch.equal(weight, expected.backbone.force_embedding.weight)
    noise = found.output_heads["noise"].force_block.proj.weight
    assert torch.equal(noise, expected.output_heads["forces"].denoising_pos_block.proj.weight)


def test_a_checkpoint_of_dens_is_resumed(dataset, tmp_path):
    first = dens_trainer(dataset, tmp_path / "first", MODEL)
    first.train(disable_eval_tqdm=True)
    second = dens_trainer(dataset, tmp_path / "second", MODEL)
    second.load_checkpoint(str(save(first)))
    assert (second.step, second.epoch) == (first.step, first.epoch)
    assert second.optimizer.state
    for found, expected in zip(second.ema.shadow_params, first.ema.shadow_params, strict=True):
        assert torch.equal(found, expected)
    # the best checkpoint has no training state: its weights are taken, and averaged anew
    best = save(first).with_name("best_checkpoint.pt")
    second.load_checkpoint(str(best))
    assert second.ema is not None
    assert validation(second)["forces_mae"] == pytest.approx(first.best_val_metric, rel=1e-5)


def changed(**backbone):
    model = copy.deepcopy(STOCK_MODEL)
    model["backbone"].update(backbone)
    return model


def without_forces():
    model = copy.deepcopy(STOCK_MODEL)
    del model["heads"]["forces"]
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            changed(max_num_elements=100),
            "max_num_elements is 100 in the checkpoint and 90 in the config: it may be larger "
            "there, not smaller (model.backbone.max_num_elements)",
        ),
        (changed(lmax_list=[3]), "lmax is 3 in the checkpoint and 2 in the config"),
        (changed(mmax_list=[1]), "mmax is 1 in the checkpoint and 2 in the config"),
        (changed(num_layers=2), "num_layers is 2 in the checkpoint and 1 in the config"),
        (changed(sphere_channels=16), "sphere_channels is 16 in the checkpoint and 8"),
        (changed(attn_value_channels=8), "has shape (48, 24) in the checkpoint and (24, 24) in"),
        (changed(share_atom_edge_embedding=True), "has no backbone.edge_degree_embedding.source_"),
        (without_forces(), "has no output_heads.forces."),
    ],
    ids=["elements", "lmax", "mmax", "layers", "channels", "values", "embeddings", "heads"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_does_not_fit_is_refused_by_name(dataset, tmp_path, model, message):
    from dens.fairchem1.checkpoints.model_sections import build

    torch.save({"state_dict": build(model).state_dict()}, tmp_path / "plain.pt")
    trainer = dens_trainer(dataset, tmp_path / "run", MODEL)
    with pytest.raises(ConfigError) as error:
        trainer.load_checkpoint(str(tmp_path / "plain.pt"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("pretrained", "message"),
    [
        ("missing.pt", "checkpoint missing.pt does not exist (model.pretrained)"),
        (3, "path must be a path, got 3 (model.pretrained.path)"),
        ({"file": "x"}, "unknown key file = 'x' (model.pretrained.file): the keys are path, noise"),
        ({"noise_head": "zero"}, "noise_head must be 'force_head' or 'fresh', got 'zero' (model."),
    ],
)
def test_pretrained_settings_are_checked(dataset, tmp_path, pretrained, message):
    with pytest.raises(ConfigError) as error:
        dens_trainer(dataset, tmp_path / "run", {**MODEL, "pretrained": pretrained})
    assert message in str(error.value)
