"""The products on edges against their plain forms."""

import pytest
import torch

from dens.fast.backends import BACKENDS, using
from dens.fast.layout import OrderMajor
from dens.fast.ops import softmax_by_target
from dens.fast.products import (
    batched_by_degree,
    block_linear,
    product_by_degree,
    three_products,
)


@pytest.mark.parametrize(
    ("functions", "shapes"),
    [
        ((block_linear, three_products), [(7, 10), (8, 5)]),
        ((product_by_degree, batched_by_degree), [(7, 9, 5), (3, 4, 5), (4,)]),
    ],
    ids=["complex", "by degree"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_products_of_a_cpu_and_of_a_gpu_are_the_same(functions, shapes, backend):
    if backend == "triton":
        pytest.importorskip("triton", reason="torch without CUDA brings no Triton")
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    results = []
    for function in functions:
        leaves = [x.clone().requires_grad_() for x in inputs]
        with using(backend):
            out = function(*leaves)
        grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
        results.append([out, *torch.autograd.grad(out, leaves, grad)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_complex_linear_is_a_product_of_complex_numbers():
    x = torch.randn(7, 5, dtype=torch.complex128)
    w = torch.randn(2, 5, dtype=torch.complex128)
    weight = torch.cat([w.real, w.imag])
    out = block_linear(torch.cat([x.real, x.imag], 1), weight)
    expected = x @ w.t()
    torch.testing.assert_close(out, torch.cat([expected.real, expected.imag], 1))


def test_softmax_of_large_logits_and_of_an_atom_without_edges():
    target = torch.tensor([0, 0, 2])
    weights = softmax_by_target(torch.tensor([[1e4], [1e4], [-1e4]]), target, 3)
    torch.testing.assert_close(weights, torch.tensor([[0.5], [0.5], [1.0]]))


def test_layout():
    layout = OrderMajor(lmax=2, mmax=1)
    assert layout.coefficients == [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (1, -1), (2, -1)]
    assert layout.rows == [0, 2, 6, 3, 7, 1, 5]
    assert layout.reduced_rows == [0, 2, 5, 3, 6, 1, 4]
    assert layout.sizes == [3, 4]
