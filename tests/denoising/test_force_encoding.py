"""Test the force encoding: equivariance, its formula, zero forces, the noise level."""

import math

import pytest
import torch
from e3nn import o3

from dens import transfer
from dens.denoising.force_encoding import ForceEncoding, _FewKernels


def encoding(dtype=torch.float64, **kwargs) -> ForceEncoding:
    torch.manual_seed(0)
    return ForceEncoding(lmax=4, channels=5, **kwargs).to(dtype)


def wigner(rotation: torch.Tensor) -> torch.Tensor:
    """Return D with Y(R x) = D Y(x) to lmax 4, in double precision (e3nn's is in single)."""
    points = torch.randn(200, 3, dtype=torch.float64)
    degrees = list(range(5))
    y, turned = (
        o3.spherical_harmonics(degrees, x, normalize=True) for x in (points, points @ rotation.T)
    )
    return torch.linalg.lstsq(y, turned).solution.T


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equivariance(dtype, tolerance):
    """Rotating or inverting the forces rotates degree l by its Wigner matrix, with (-1)^l."""
    enc = encoding(dtype)
    forces, sigma = torch.randn(7, 3, dtype=dtype), torch.zeros(7, dtype=dtype)
    for rotation in o3.rand_matrix(3, dtype=torch.float64):
        for sign in (1, -1):
            matrix = wigner(sign * rotation)
            torch.testing.assert_close(matrix @ matrix.T, torch.eye(25, dtype=torch.float64))
            turned = enc((forces.double() @ (sign * rotation).T).to(dtype), sigma)
            expected = torch.einsum("pq,nqc->npc", matrix, enc(forces, sigma).double())
            assert (turned - expected).abs().max() < tolerance * expected.abs().max()


def test_formula():
    """The encoding is |f| / sqrt(3) Y(f) times a weight; its degree-1 part has the norm |f|."""
    enc = encoding()
    forces = torch.randn(6, 3, dtype=torch.float64)
    out = enc(forces, torch.zeros(6, dtype=torch.float64))
    assert out.shape == (6, 25, 5)
    for degree in range(5):
        rows = slice(degree**2, (degree + 1) ** 2)
        y = o3.spherical_harmonics(degree, forces, normalize=True, normalization="component")
        raw = y * forces.norm(dim=1, keepdim=True) / math.sqrt(3)
        if degree == 1:
            torch.testing.assert_close(raw.norm(dim=1), forces.norm(dim=1))
        expected = raw[:, :, None] * enc.weight[degree, :, 0]
        torch.testing.assert_close(out[:, rows], expected)


@pytest.mark.parametrize("lmax", [0, 1, 4, 6, 8])
def test_harmonics_of_a_gpu_are_those_of_e3nn(lmax):
    poles = torch.tensor([[0, 1, 0], [0, -2, 0], [3, 0, 0], [0, 0, -1.0]])
    vectors = torch.cat([poles, torch.randn(50, 3)]).double()
    degrees = list(range(lmax + 1))
    expected = o3.spherical_harmonics(degrees, vectors, True, normalization="component")
    harmonics = _FewKernels(lmax)
    torch.testing.assert_close(harmonics(vectors), expected, rtol=0, atol=1e-12)
    found = harmonics(vectors.float()).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_encoding_of_a_gpu_is_that_of_a_cpu(monkeypatch):
    enc = encoding(sigma_encoding=True)
    forces, sigma = torch.randn(6, 3, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    forces[2] = 0
    expected = enc(forces, sigma)
    monkeypatch.setattr(transfer, "is_host", lambda device: False)
    torch.testing.assert_close(enc(forces, sigma), expected)
    assert (enc(forces, 0 * sigma)[2] == 0).all()


@pytest.mark.parametrize("sigma_encoding", [False, True])
def test_zero_force_is_zero_with_finite_gradients(sigma_encoding):
    enc = encoding(torch.float32, sigma_encoding=sigma_encoding)
    forces = torch.zeros(3, 3)
    forces[1] = torch.tensor([1e-8, 0, 0])
    forces.requires_grad_()
    out = enc(forces, torch.zeros(3))
    assert (out[[0, 2]] == 0).all()
    out.pow(2).sum().backward()
    for tensor in (forces, *enc.parameters()):
        assert tensor.grad.isfinite().all()


def test_sigma_reaches_degree_zero_only():
    enc = encoding(sigma_encoding=True)
    forces, sigma = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0.1, 0.0]).double()
    added = enc(forces, sigma) - enc(forces, torch.zeros_like(sigma))
    torch.testing.assert_close(added[0, 0], 0.1 * enc.sigma_weight)
    assert (added[0, 1:] == 0).all()
    assert (added[1] == 0).all()


def test_repr_and_bad_init():
    assert repr(encoding()) == "ForceEncoding(1x1o -> 5x0e+5x1o+5x2e+5x3o+5x4e)"
    with pytest.raises(ValueError, match="weight_init must be 'uniform' or 'normal', got 'xavier'"):
        ForceEncoding(2, 4, weight_init="xavier")
