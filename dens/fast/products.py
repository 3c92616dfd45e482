"""Linear layers of EquiformerV2: by degree on atoms, by order on edges."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dens.fast.backends import backend_of
from dens.fast.chunks import FusedFunction, autocast_type


def linear_by_degree(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply one matrix to each degree, and a bias to l = 0.

    A CPU computes a product for each degree, a GPU one batched product of all rows.

    Args:
        x: (n_atoms, (lmax + 1)^2, channels), degree-major.
        weight: (lmax + 1, out, channels).
        bias: (out,).

    Returns:
        (n_atoms, (lmax + 1)^2, out).
    """
    if x.device.type == "cpu":
        return product_by_degree(x, weight, bias)
    return batched_by_degree(x, weight, bias)


def product_by_degree(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute :func:`linear_by_degree` as a product for each degree."""
    sizes = [2 * degree + 1 for degree in range(len(weight))]
    scalars, *parts = x.split(sizes, dim=1)
    out = [F.linear(scalars, weight[0], bias)]
    out += [F.linear(part, w) for part, w in zip(parts, weight[1:], strict=True)]
    return torch.cat(out, dim=1)


def batched_by_degree(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute :func:`linear_by_degree` as one batched product."""
    return _BatchedByDegree.apply(*autocast_type(x, weight, bias))


class _BatchedByDegree(FusedFunction):
    def forward(ctx, x, weight, bias):
        matrices = weight.index_select(0, _degree_of_row(len(weight), x.device))
        ctx.save_for_backward(x, matrices)
        out = x.new_empty(*x.shape[:2], weight.shape[1])
        torch.bmm(x.transpose(0, 1), matrices.transpose(1, 2), out=out.transpose(0, 1))
        out[:, 0] += bias
        return out

    def backward(ctx, grad):
        x, matrices = ctx.saved_tensors
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        grad_rows = grad.transpose(0, 1)
        torch.bmm(grad_rows, matrices, out=grad_x.transpose(0, 1))
        of_rows = torch.bmm(grad_rows.transpose(1, 2), x.transpose(0, 1))
        degrees = math.isqrt(len(of_rows))
        grad_weight = of_rows.new_zeros(degrees, *of_rows.shape[1:])
        grad_weight.index_add_(0, _degree_of_row(degrees, x.device), of_rows)
        return grad_x, grad_weight, grad[:, 0].sum(0)


@functools.cache
def _degree_of_row(degrees: int, device: torch.device) -> Tensor:
    rows = [degree for degree in range(degrees) for _ in range(2 * degree + 1)]
    return torch.tensor(rows, device=device)


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
    return _BlockLinear.apply(*autocast_type(x), weight, backend_of(x.device) == "triton")


class _BlockLinear(FusedFunction):
    def forward(ctx, x, weight, fused):
        block = _join_complex(weight, x.dtype, fused)
        ctx.save_for_backward(x, block)
        ctx.weight_type, ctx.fused = weight.dtype, fused
        return x @ block.t()

    def backward(ctx, grad):
        x, block = ctx.saved_tensors
        grad_weight = _add_complex(grad.t() @ x, ctx.weight_type, ctx.fused)
        return grad @ block, grad_weight, None


def _join_complex(weight: Tensor, dtype: torch.dtype, fused: bool) -> Tensor:
    """Make the real matrix of a complex one: (2 n_out, n) -> (2 n_out, 2 n), in ``dtype``."""
    if fused:
        from dens.fast.triton.complex_matrix import join_complex

        return join_complex(weight, dtype)
    real, imaginary = weight.to(dtype).chunk(2)
    return torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])


def _add_complex(grad: Tensor, dtype: torch.dtype, fused: bool) -> Tensor:
    """Add up the gradients of the places of each number in :func:`_join_complex`."""
    if fused:
        from dens.fast.triton.complex_matrix import add_complex

        return add_complex(grad, dtype)
    (real, negative), (imaginary, again) = (part.chunk(2, dim=1) for part in grad.chunk(2))
    return torch.cat([real + again, imaginary - negative]).to(dtype)


class _ThreeProducts(FusedFunction):
    """Each product is written where it belongs: another pass over it costs a tenth of one."""

    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        (plus, minus), (real, imaginary) = x.chunk(2, dim=1), weight.chunk(2)
        out = x.new_empty(len(x), len(weight))
        out_plus, out_minus = out.chunk(2, dim=1)
        torch.mm(plus + minus, real.t(), out=out_plus)  # shared by both
        torch.addmm(out_plus, plus, (imaginary - real).t(), out=out_minus)
        out_plus.addmm_(minus, (real + imaginary).t(), alpha=-1)
        return out

    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        (plus, minus), (real, imaginary) = x.chunk(2, dim=1), weight.chunk(2)
        grad_plus, grad_minus = grad.chunk(2, dim=1)
        grad_sum = grad_plus + grad_minus
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        of_plus, of_minus = grad_x.chunk(2, dim=1)
        torch.mm(grad_sum, real, out=of_plus)
        torch.addmm(of_plus, grad_plus, real + imaginary, alpha=-1, out=of_minus)
        of_plus.addmm_(grad_minus, imaginary - real)
        of_real, of_imaginary = grad_weight.chunk(2)
        first, second = grad_plus.t() @ plus, grad_minus.t() @ minus
        torch.add(first, second, out=of_real)
        torch.mm(grad_sum.t(), plus - minus, out=of_imaginary)
        of_imaginary.sub_(first).add_(second)
        return grad_x, grad_weight
