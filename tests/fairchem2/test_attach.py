"""Test force encoding and noise head on stock models."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from helpers.stock2 import DENS

from dens.denoising.config import parse_config
from dens.denoising.corruption import attach, corrupt
from dens.fairchem2.attach import NOISE, NodeForceEncoding, attach_dens, is_added
from dens.random import make_generator
from dens.settings import ConfigError

FIELDS = ("pos", "cell", "noise", "sigma", "noise_forces", "forces")


def corrupted(batch):
    """Corrupt all structures of a batch."""
    config = parse_config({**DENS, "prob": 1.0})
    c = corrupt(batch.pos, batch.batch, batch.natoms, config, make_generator(0))
    attach(batch, c, batch.forces)
    return batch


def bare(unit):
    return unit.model.module


@pytest.mark.parametrize("gradient", [False, True])
def test_noise_is_equivariant(new_runner, gradient):
    runner = new_runner(gradient=gradient)
    model = bare(runner.train_eval_unit).double().eval()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    turn = turn * turn.det()
    outputs = []
    for rotated in (False, True):
        batch = corrupted(next(iter(runner.eval_dataloader)))
        for name in FIELDS:
            batch[name] = batch[name].double()
        if rotated:
            for name in ("pos", "cell", "noise_forces"):
                batch[name] = batch[name] @ turn.T
        outputs.append(model(batch))
    noise, noise_of_rotated = (out[NOISE]["noise"].detach() for out in outputs)
    assert noise.abs().max() > 1e-3
    assert torch.allclose(noise @ turn.T, noise_of_rotated, atol=1e-12)


def test_copies_have_hooks_of_their_own(new_runner):
    """A deep copy, such as the moving average, and a saved model encode with their own weights."""
    runner = new_runner()
    model = bare(runner.train_eval_unit).eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        outputs = []
        for each in (model, other):
            torch.manual_seed(0)
            outputs.append(each(corrupted(next(iter(runner.eval_dataloader))))[NOISE]["noise"])
        assert torch.equal(*outputs)
        with torch.no_grad():
            other.backbone.force_encoding.weight.zero_()
        torch.manual_seed(0)
        changed = other(corrupted(next(iter(runner.eval_dataloader))))[NOISE]["noise"]
        assert not torch.equal(changed, outputs[0])
        torch.manual_seed(0)
        again = model(corrupted(next(iter(runner.eval_dataloader))))[NOISE]["noise"]
        assert torch.equal(again, outputs[0])


@pytest.mark.parametrize("sigma_encoding", [False, True])
def test_parameters_that_are_added(new_runner, sigma_encoding):
    runner = new_runner(unit={"sigma_encoding": sigma_encoding})
    stock = new_runner(dens=None).train_eval_unit.model.module.state_dict()
    ours = bare(runner.train_eval_unit).state_dict()
    added = {name for name in ours if is_added(name)}
    assert ours.keys() - added == stock.keys()
    encoding = {name for name in added if "force_encoding" in name}
    assert len(encoding) == 1 + sigma_encoding
    assert added - encoding
    assert all(is_added(f"module.module.{name}") for name in added)
    encoder = bare(runner.train_eval_unit).backbone.force_encoding
    assert isinstance(encoder, NodeForceEncoding)


def test_evaluation_is_that_of_the_stock_model(new_runner):
    """Also of stress, and of gradients of the energy."""
    runner = new_runner(gradient=True)
    stock = copy.deepcopy(bare(new_runner(gradient=True, dens=None).train_eval_unit)).eval()
    model = bare(runner.train_eval_unit).eval()
    model.load_state_dict(stock.state_dict(), strict=False)
    outputs = []
    for each in (stock, model):
        torch.manual_seed(5)  # of the roll of edge frames
        outputs.append(each(next(iter(runner.eval_dataloader))))
    expected, found = outputs
    assert found[NOISE] == {} if NOISE in found else True
    for head in ("energy", "forces", "stress"):
        assert torch.equal(found[head][head], expected[head][head])


def test_every_parameter_has_a_gradient_in_a_clean_batch(new_runner):
    runner = new_runner()
    model = bare(runner.train_eval_unit).train()
    outputs = model(next(iter(runner.train_dataloader)))
    sum(value.sum() for head in outputs.values() for value in head.values()).backward()
    assert torch.equal(outputs[NOISE]["noise"], torch.zeros_like(outputs[NOISE]["noise"]))
    for name, parameter in model.named_parameters():
        if is_added(name):
            assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


def test_models_that_it_does_not_fit(new_runner):
    with pytest.raises(ConfigError, match="needs a HydraModel with backbone and heads, got Linear"):
        attach_dens(torch.nn.Linear(1, 1))
    model = bare(new_runner(dens=None).train_eval_unit)
    del model.backbone.edge_degree_embedding, model.backbone.lmax
    message = "got eSCNMDBackbone, which has no edge_degree_embedding and no lmax"
    with pytest.raises(ConfigError, match=message):
        attach_dens(model)
