"""Checkpoints of fairchem's own DeNS of eSEN, and of flat eSCN, become models of dens."""

import pytest
import torch
from contracts.backbone import build, corrupted, run
from fairchem.core.models.escn.escn import eSCN
from helpers.backbones import SETTINGS
from helpers.structures import make_batch
from helpers.trainers import trainer_config

from dens.fairchem1.backbones.families import ESCN, ESEN
from dens.fairchem1.checkpoints.export import export
from dens.fairchem1.checkpoints.layouts import FAIRCHEM_DENS, FLAT_DENS, interpret


def content_of(model, section: dict) -> dict:
    """Make the content of a checkpoint as fairchem writes it, with biases that are not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    config = trainer_config("data")
    names = ("outputs", "loss_functions", "evaluation_metrics", "dataset")
    sections = {"optim": {}, **{name: config[name] for name in names}}
    return {"state_dict": state, "config": {"model": section, **sections}}


def imported(content: dict):
    checkpoint = interpret(content, "checkpoint.pt")
    model = build(checkpoint.model)
    model.load_state_dict({**model.state_dict(), **checkpoint.weights})
    return checkpoint, model


def assert_equal(out: dict, expected: dict) -> None:
    for name in ("energy", "forces"):
        torch.testing.assert_close(out[name], expected[name], rtol=1e-5, atol=1e-6)


def test_dens_of_esen():
    """Outputs are equal on clean and corrupted structures; so is the export on clean ones."""
    heads = {"energy": "esen_mlp_energy_head", "forces": "esen_linear_force_head_dens"}
    section = {
        "name": "hydra",
        "backbone": {"model": "esen_backbone_dens", **SETTINGS[ESEN]},
        "heads": {name: {"module": module} for name, module in heads.items()},
        "pass_through_head_outputs": True,
    }
    theirs = build(section)
    checkpoint, model = imported(content_of(theirs, section))
    assert checkpoint.layout == FAIRCHEM_DENS
    assert checkpoint.heads == {"energy": "energy", "forces": "forces", "noise": "noise"}
    assert_equal(run(model, make_batch(2)), run(theirs, make_batch(2)))
    exported = export(checkpoint, "checkpoint.pt")
    stock = build(exported["config"]["model"])
    stock.load_state_dict(exported["state_dict"])
    assert_equal(run(stock, make_batch(2)), run(theirs, make_batch(2)))

    batch, their_batch = corrupted(make_batch(2)), make_batch(2)
    their_batch.pos, their_batch.noise_mask = batch.pos.clone(), batch.noise_mask.clone()
    their_batch.denoising_pos_forward = True
    out = run(model, batch)
    out["forces"] = torch.where(batch.noise_mask[:, None], out["noise"], out["forces"])
    assert_equal(out, run(theirs, their_batch))


@pytest.mark.parametrize("dens", [False, True], ids=["plain", "DeNS of the authors"])
def test_flat_escn(dens):
    """The authors' model with DeNS is fairchem's with two more modules, here made by hand."""
    torch.manual_seed(0)
    theirs = eSCN(**SETTINGS[ESCN]).eval()
    content = content_of(theirs, {"name": "escn_dens" if dens else "escn", **SETTINGS[ESCN]})
    if dens:
        state = content["state_dict"]
        state["module.force_embedding.weight"] = torch.randn(3, 8, 1)
        state["module.force_embedding.bias"] = torch.zeros(8)
        for name, value in theirs.force_block.state_dict().items():
            state[f"module.denoising_pos_block.{name}"] = value
    checkpoint, model = imported(content)
    assert checkpoint.layout == (FLAT_DENS if dens else "eSCN, flat")
    out = run(model, make_batch(2))
    expected = run(theirs, make_batch(2))
    for name in ("energy", "forces"):
        torch.testing.assert_close(out[name], expected[name], rtol=1e-5, atol=1e-8)
    if dens:
        out = run(model, corrupted(make_batch(2)))
        assert torch.equal(out["noise"], out["forces"])
