"""Test that blocks that run as one on padded graphs give what they give one after another."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem
import copy
import logging

import pytest
import torch
from contracts.backbone import build, corrupted
from fairchem.core.common.utils import setup_imports
from fairchem.core.models.base import HydraModel
from helpers.live_capture import LiveCapture
from helpers.precision import double, geometry_in_single, in_double
from helpers.structures import make_batch
from helpers.trainers import MODEL

from dens import transfer
from dens.fast.replay import replayed

setup_imports()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the numbers of dropout depend on the number of atoms and edges, which padding changes
SETTINGS = {"num_layers": 2, "alpha_drop": 0.0, "drop_path_rate": 0.0}


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Where there is no GPU, let the host seem to be one, and run recorded functions again."""
    if DEVICE == "cpu":
        monkeypatch.setattr(replayed, "Capture", LiveCapture)
        monkeypatch.setattr(transfer, "is_host", lambda device: False)


def model_of(cuda_graphs: bool, dtype=torch.float64, **backbone) -> HydraModel:
    settings = {**SETTINGS, **backbone, "cuda_graphs": cuda_graphs}
    return build(MODEL, dtype, **settings).to(DEVICE)


def step_of(model: HydraModel, batch, seed: int = 1) -> tuple[dict, dict]:
    """Return the outputs that enter the loss, and all gradients."""
    model.zero_grad()
    torch.manual_seed(seed)
    out = dict(model(batch.clone()))
    mask = batch.noise_mask
    out["forces"], out["noise"] = out["forces"][~mask], out["noise"][mask]
    sum((value * torch.arange(1.0, value.numel() + 1).to(value).view_as(value)).sum()
        for value in out.values()).backward()  # fmt: skip
    return out, {name: p.grad for name, p in model.named_parameters()}


def assert_same(expected: dict, found: dict, tolerance: float) -> None:
    largest = max(value.abs().max() for value in expected.values() if value is not None)
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
        elif value.numel():
            assert (found[name] - value).abs().max() <= tolerance * largest, name


def test_steps_in_batches_of_several_sizes():
    with double():
        plain, joined = (geometry_in_single(model_of(flag).train()) for flag in (False, True))
        for structures in (1, 3, 1, 2):
            batch = in_double(corrupted(make_batch(structures), corrupt_ratio=0.5)).to(DEVICE)
            (out, grads), (other, other_grads) = step_of(plain, batch), step_of(joined, batch)
            assert_same(out, other, 1e-10)
            assert_same(grads, other_grads, 1e-10)
    assert len(joined.backbone.blocks.replays) == 3  # one for each size


def test_heads_take_the_edges_of_the_atoms_in_the_loss():
    """Together they take as many as one head of a clean batch, to quarters of them."""
    model, shares = model_of(True, torch.float32).train(), {}
    batch = corrupted(make_batch(3), corrupt_ratio=0.5).to(DEVICE)
    for clean in (True, False):
        if clean:
            model(make_batch(3).to(DEVICE))
        else:
            out = model(batch.clone())
        for name in ("forces", "noise"):
            captures = list(model.output_heads[name].replays._captures.values())
            shares[name, clean] = [len(capture.inputs[2]) for capture in captures]
    (everything,) = shares["forces", True]
    assert shares["noise", True] == []  # it has not run
    assert shares["forces", False][1] + shares["noise", False][0] <= 1.25 * everything
    assert not out["forces"][batch.noise_mask].any()
    assert not out["noise"][~batch.noise_mask].any()


def test_dropout_draws_anew_in_each_step():
    """From the same seed the same numbers, from another one others."""
    with double():
        model = geometry_in_single(model_of(True, drop_path_rate=0.5, alpha_drop=0.1).train())
        batch = in_double(corrupted(make_batch(2), corrupt_ratio=0.5)).to(DEVICE)
        step_of(model, batch)  # records
        first, again, other = (step_of(model, batch, seed)[0]["energy"] for seed in (1, 1, 2))
    assert len(model.backbone.blocks.replays) == 1
    assert torch.allclose(first, again, rtol=1e-10)
    assert not torch.allclose(first, other, rtol=1e-3)


def test_in_evaluation_the_blocks_run_one_after_another():
    batch, found = make_batch(2).to(DEVICE), []
    for flag in (False, True):
        model = model_of(flag, torch.float32).eval()
        torch.manual_seed(1)
        found.append(model(batch.clone()))
    plain, joined = found
    for name, value in plain.items():  # a GPU adds up energies in no fixed order
        assert torch.allclose(joined[name], value, rtol=1e-5, atol=0), name
    assert len(model.backbone.blocks.replays) == 0
    assert isinstance(model.backbone.blocks[0], torch.nn.Module)


def test_parameters_names_and_copies():
    plain, joined = model_of(False), model_of(True)
    assert list(plain.state_dict()) == list(joined.state_dict())
    other = copy.deepcopy(joined)
    assert other.backbone.blocks.replays is not joined.backbone.blocks.replays


@pytest.mark.parametrize("setting", ["fast: false", "activation_checkpoint: true"])
def test_settings_with_which_there_are_no_graphs(setting, caplog):
    name, _, value = setting.partition(": ")
    with caplog.at_level(logging.WARNING):
        model = model_of(True, torch.float32, **{name: value == "true"})
    assert f"model.backbone.cuda_graphs takes no effect with {setting}" in caplog.text
    assert not model.backbone.cuda_graphs
