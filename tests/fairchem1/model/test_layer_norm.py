"""Test the layer norm of a GPU against fairchem's."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem
import copy

import pytest
import torch
from fairchem.core.models.equiformer_v2.layer_norm import get_normalization_layer

from dens import transfer
from dens.fairchem1.model.layer_norm import SphericalLayerNorm


@pytest.mark.parametrize("lmax", [1, 4, 6])
def test_results_and_gradients_are_fairchems(monkeypatch, lmax):
    stock = get_normalization_layer("layer_norm_sh", lmax, 8).double()
    assert SphericalLayerNorm.covers(stock)
    torch.nn.init.normal_(stock.affine_weight)
    ours = copy.deepcopy(stock)
    ours.__class__ = SphericalLayerNorm
    assert ours.state_dict().keys() == stock.state_dict().keys()
    x = torch.randn(5, (lmax + 1) ** 2, 8, dtype=torch.float64)
    weights = torch.randn_like(x)
    found = []
    for norm, on_host in ((stock, True), (ours, True), (ours, False)):
        monkeypatch.setattr(transfer, "is_host", lambda device, on_host=on_host: on_host)
        inputs, parameters = x.clone().requires_grad_(), list(norm.parameters())
        out = norm(inputs)
        grads = torch.autograd.grad((out * weights).sum(), [inputs, *parameters])
        found.append([out, *grads])
    for expected, on_cpu, on_gpu in zip(*found, strict=True):
        assert torch.equal(on_cpu, expected)
        torch.testing.assert_close(on_gpu, expected)


def test_other_norms_stay():
    assert not SphericalLayerNorm.covers(get_normalization_layer("rms_norm_sh", 2, 4))
