"""Test the frames and Wigner matrices of a GPU against fairchem's, on which a CPU keeps."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem
import pytest
import torch
from fairchem.core.models.equiformer_v2.edge_rot_mat import init_edge_rot_mat
from fairchem.core.models.equiformer_v2.so3 import SO3_Rotation
from helpers.precision import double

from dens import EquiformerV2Backbone, transfer
from dens.fairchem1.model.edge_frames import EdgeFrames

POLES = torch.tensor([[0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1.0]])
SETTINGS = {
    "num_layers": 1,
    "use_grid_mlp": True,
    "sphere_channels": 4,
    "lmax_list": [3],
    "mmax_list": [2],
}


def edges() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.cat([2 * POLES, 3 * torch.randn(200, 3, generator=generator)]).double()


@pytest.mark.parametrize("lmax", [1, 2, 4, 6])
def test_frames_and_matrices_equal_fairchems(lmax):
    tables, rotation = EdgeFrames(lmax), SO3_Rotation(lmax)
    found = []
    for make in (init_edge_rot_mat, tables.frames):
        torch.manual_seed(0)
        found.append((make(edges()), torch.rand(1)))
    (expected, random), (frames, other_random) = found
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-14)
    assert torch.equal(random, other_random)  # the same numbers are drawn
    with double():
        rotation.set_wigner(expected)
    torch.testing.assert_close(tables.wigner(frames), rotation.wigner, rtol=0, atol=1e-13)


def test_matrices_in_single_precision_are_orthogonal():
    tables = EdgeFrames(6)
    matrices = tables.wigner(tables.frames(edges().float()))
    eye = torch.eye(49).expand_as(matrices)
    torch.testing.assert_close(matrices @ matrices.mT, eye, rtol=0, atol=2e-6)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_autocast_rounds_no_matrix(monkeypatch, on_gpu):
    rotation = EquiformerV2Backbone(fast=True, **SETTINGS).SO3_rotation[0]
    frames = init_edge_rot_mat(edges().float())
    if on_gpu:
        monkeypatch.setattr(transfer, "is_host", lambda device: False)
    rotation.set_wigner(frames)
    expected = rotation.to_frames.clone(), rotation.from_frames.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rotation.set_wigner(frames)
    assert torch.equal(rotation.to_frames, expected[0])
    assert torch.equal(rotation.from_frames, expected[1])
    assert rotation.to_frames.dtype == torch.float32
