"""Linear layers of EquiformerV2 (by degree on atoms, by order on edges), and edge softmax."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dens.fast.chunks import FusedFunction, autocast_type


def linear_by_degree(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply one matrix to each degree, and a bias to l = 0.

    Args:
        x: (n_atoms, (lmax + 1)^2, channels), degree-major.
        weight: (lmax + 1, out, channels).
        bias: (out,).

    Returns:
        (n_atoms, (lmax + 1)^2, out).
    """
    sizes = [2 * degree + 1 for degree in range(len(weight))]
    scalars, *parts = x.split(sizes, dim=1)
    out = [F.linear(scalars, weight[0], bias)]
    out += [F.linear(part, w) for part, w in zip(parts, weight[1:], strict=True)]
    return torch.cat(out, dim=1)


def complex_linear(x: Tensor, weight: Tensor) -> Tensor:
    r"""Apply the complex linear layer of an order m > 0.

    .. math:: \begin{pmatrix} y_+ \\ y_- \end{pmatrix} =
        \begin{pmatrix} W_r & -W_i \\ W_i & W_r \end{pmatrix}
        \begin{pmatrix} x_+ \\ x_- \end{pmatrix}

    A CPU computes three real products of a quarter of that size instead of four (Gauss); a GPU,
    where arithmetic is cheap and launches are not, computes one product.

    Args:
        x: (n_edges, 2 n), +m before -m.
        weight: (2 n_out, n), W_r above W_i.

    Returns:
        (n_edges, 2 n_out).
    """
    return three_products(x, weight) if x.device.type == "cpu" else block_linear(x, weight)


def three_products(x: Tensor, weight: Tensor) -> Tensor:
    """Compute :func:`complex_linear` as three real products."""
    return _ThreeProducts.apply(*autocast_type(x, weight))


def block_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Compute :func:`complex_linear` as one product with the block matrix."""
    real, imaginary = weight.chunk(2)
    block = torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])
    return F.linear(x, block)


class _ThreeProducts(FusedFunction):
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        (plus, minus), (real, imaginary) = x.chunk(2, dim=1), weight.chunk(2)
        shared = (plus + minus) @ real.t()
        out = x.new_empty(len(x), len(weight))
        out_plus, out_minus = out.chunk(2, dim=1)
        torch.addmm(shared, minus, (real + imaginary).t(), alpha=-1, out=out_plus)
        torch.addmm(shared, plus, (imaginary - real).t(), out=out_minus)
        return out

    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        (plus, minus), (real, imaginary) = x.chunk(2, dim=1), weight.chunk(2)
        grad_plus, grad_minus = grad.chunk(2, dim=1)
        grad_sum = grad_plus + grad_minus
        shared = grad_sum @ real
        grad_x = torch.empty_like(x)
        of_plus, of_minus = grad_x.chunk(2, dim=1)
        torch.addmm(shared, grad_minus, imaginary - real, out=of_plus)
        torch.addmm(shared, grad_plus, real + imaginary, alpha=-1, out=of_minus)
        first, second = grad_plus.t() @ plus, grad_minus.t() @ minus
        third = grad_sum.t() @ (plus - minus)
        return grad_x, torch.cat([first + second, third - first + second])


def softmax_by_target(logits: Tensor, target: Tensor, n_atoms: int) -> Tensor:
    """Apply softmax over the edges into each atom: (n_edges, heads) -> (n_edges, heads)."""
    index = target[:, None].expand_as(logits)
    largest = logits.new_zeros(n_atoms, logits.shape[1]).scatter_reduce(
        0, index, logits.detach(), "amax", include_self=False
    )
    weights = (logits - largest.index_select(0, target)).exp()
    total = weights.new_zeros(n_atoms, logits.shape[1]).index_add(0, target, weights)
    return weights / (total.index_select(0, target) + 1e-16)  # as in torch_geometric
