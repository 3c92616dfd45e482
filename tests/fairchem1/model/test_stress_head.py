"""Test the stress head: it turns with the structure, and a stock head can have its weights."""

import copy

import pytest
import torch
from contracts.backbone import corrupted
from e3nn import o3
from fairchem.core.common.utils import cg_change_mat, setup_imports
from fairchem.core.models.base import HydraModel
from helpers.stress_settings import STOCK_STRESS_HEAD, STRESS_HEAD
from helpers.structures import make_batch
from helpers.trainers import EXACT_MODEL, MODEL, STOCK_MODEL

from dens.fairchem1.model.stress_head import as_stock

setup_imports()


def build(model=MODEL, head=STRESS_HEAD, **backbone) -> HydraModel:
    """Build a model with a stress head and random weights, biases included."""
    config = copy.deepcopy({k: v for k, v in model.items() if k != "name"})
    config["backbone"].update(backbone)
    config["heads"]["stress"] = dict(head)
    torch.manual_seed(0)
    model = HydraModel(**config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def run(model, batch) -> dict[str, torch.Tensor]:
    """Return the outputs, with the stress composed of its parts, (n_structures, 3, 3)."""
    torch.manual_seed(0)  # the frames of edges are random
    with torch.no_grad():
        out = model(batch)
    n = len(batch.natoms)
    irreps = torch.zeros(n, 9)
    irreps[:, :1], irreps[:, 4:] = out.pop("stress_isotropic"), out.pop("stress_anisotropic")
    return {**out, "stress": (irreps @ cg_change_mat(2)).view(n, 3, 3)}


def turned(batch, rotation):
    other = batch.clone()
    for name in ("pos", "cell", "forces", "noise", "noise_forces"):
        if name in other:
            other[name] = batch[name] @ rotation.T
    return other


def deviations(model, batch) -> dict[str, float]:
    """Return how far outputs are from turning with a batch, over the largest of each."""
    torch.manual_seed(3)
    rotation = o3.rand_matrix()
    out, other = run(model, batch), run(model, turned(batch, rotation))
    expected = {name: value @ rotation.T for name, value in out.items() if name != "energy"}
    expected["stress"] = rotation @ out["stress"] @ rotation.T
    expected["energy"] = out["energy"]
    return {
        name: ((other[name] - value).abs().max() / value.abs().max()).item()
        for name, value in expected.items()
    }


@pytest.mark.parametrize("noisy", [False, True], ids=["clean", "corrupted"])
def test_outputs_turn_with_the_structure(noisy):
    batch = make_batch(3)
    found = deviations(build(EXACT_MODEL), corrupted(batch) if noisy else batch)
    assert set(found) == {"energy", "forces", "stress"} | ({"noise"} if noisy else set())
    assert max(found.values()) < 2e-4, found


def test_the_stress_of_fairchems_head_does_not():
    """Why there is a head of our own."""
    assert deviations(build(EXACT_MODEL, STOCK_STRESS_HEAD), make_batch(3))["stress"] > 0.05


@pytest.mark.parametrize("fast", [False, True])
def test_a_stock_head_can_have_its_weights(fast):
    ours, stock = build(fast=fast), build(head=STOCK_STRESS_HEAD, fast=False)
    stock.load_state_dict(as_stock(ours.state_dict(), "stress"))
    batch = make_batch(4)
    out, expected = run(ours, batch), run(stock, batch)
    for name in expected:
        torch.testing.assert_close(out[name], expected[name], rtol=1e-4, atol=1e-5)


def test_the_stress_of_fairchems_head_is_stock_bit_for_bit():
    """The published recipes have this head on the backbone of dens."""
    ours = build(head=STOCK_STRESS_HEAD, fast=False)
    stock = build(STOCK_MODEL, STOCK_STRESS_HEAD)
    stock.load_state_dict(ours.state_dict(), strict=False)
    out, expected = run(ours, make_batch(4)), run(stock, make_batch(4))
    assert set(out) == set(expected)
    assert all(torch.equal(out[name], expected[name]) for name in expected)


@pytest.mark.parametrize("radius", [0.01, 1.5], ids=["no neighbours", "few neighbours"])
def test_atoms_without_neighbours(radius):
    out = run(build(max_radius=radius), make_batch(2))
    assert out["stress"].isfinite().all()
