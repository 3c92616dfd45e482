"""The products on edges against their plain forms."""

import torch

from dens.fast.layout import OrderMajor
from dens.fast.products import block_linear, complex_linear, softmax_by_target


def test_three_products_are_the_block_product():
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((7, 10), (8, 5), (7, 8))
    )
    results = []
    for function in (block_linear, complex_linear):
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = function(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, grad)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


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
