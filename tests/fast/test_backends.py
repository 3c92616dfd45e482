"""Contract of the fast operations: every backend equals the plain form, forward and backward.

Triton's kernels run in its interpreter, on the CPU, or on the GPU where there is one.
"""

import math
from contextlib import nullcontext

import pytest
import torch
from e3nn import o3
from helpers.interpreter import need_triton
from torch.utils._pytree import tree_leaves, tree_map_only

from dens.fast import backends, ops, reference
from dens.fast.layout import OrderMajor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# of the tensors; bfloat16: of autocast, with tensors in float32
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}
OPERATIONS = [
    "separable_s2",
    "grid_mlp",
    "rotate_in",
    "rotate_out",
    "rotate_out, one degree",
    "attention_logits",
    "softmax_by_target",
    "layer_norm_silu",
    "edge_norm_silu",
    "equivariant_layer_norm",
]
LAYOUTS = [(2, 1), (3, 2), (3, 3), (4, 2)]


@pytest.fixture(params=backends.BACKENDS)
def backend(request):
    if request.param == "triton":
        need_triton()
    with backends.using(request.param):
        yield request.param


@pytest.fixture(params=LAYOUTS, ids=lambda pair: f"lmax {pair[0]}, mmax {pair[1]}")
def layout(request):
    return OrderMajor(*request.param)


def grid(lmax: int, side: int, rows: list[int] | slice = slice(None)) -> list[torch.Tensor]:
    """Matrices to and from a grid of ``side`` latitudes and longitudes: (points, rows)."""
    beta = math.pi * (torch.arange(side, dtype=torch.float64) + 0.5) / side
    alpha = 2 * math.pi * torch.arange(side, dtype=torch.float64) / side
    points = o3.angles_to_xyz(alpha.expand(side, side), beta[:, None].expand(side, side))
    harmonics = o3.spherical_harmonics(list(range(lmax + 1)), points.view(-1, 3), False)
    to_grid = harmonics[:, rows].contiguous()
    return [to_grid, (to_grid * beta.sin().repeat_interleave(side)[:, None] / side).contiguous()]


def rotations(layout: OrderMajor, n: int) -> torch.Tensor:
    angles = 3 * torch.rand(3, n, dtype=torch.float64)
    irreps = o3.Irreps([(1, (degree, 1)) for degree in range(layout.lmax + 1)])
    return irreps.D_from_angles(*angles)[:, layout.rows].contiguous()


def edges(n_atoms: int, n_edges: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Edges in no order; the last atom has none."""
    return tuple(torch.randint(n_atoms - 1, (2, n_edges)))


def case(name: str, layout: OrderMajor) -> tuple[list, tuple]:
    """Arguments of an operation: those with gradients, and the others."""
    channels = 6

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    if name == "separable_s2":
        x = [randn(3, size * channels) for size in layout.sizes]
        return [randn(3, channels), x], (
            *grid(layout.lmax, 2 * layout.lmax + 3, layout.rows),
            layout,
        )
    if name == "grid_mlp":
        x = randn(3, (layout.lmax + 1) ** 2, channels)
        return [x, randn(4, channels)], tuple(grid(layout.lmax, 10))
    if name == "attention_logits":
        return [randn(7, 3 * 5), randn(5), randn(5), randn(3, 5)], (1e-5, 0.2)
    if name == "layer_norm_silu":
        return [randn(19, channels), randn(channels), randn(channels)], (1e-5,)
    if name == "equivariant_layer_norm":
        x, lmax = randn(3, (layout.lmax + 1) ** 2, channels), layout.lmax
        sizes = torch.tensor([2 * degree + 1 for degree in range(1, lmax + 1)])
        balance = 1 / (lmax * sizes.double()).repeat_interleave(sizes)[:, None]
        weights = [randn(channels), randn(channels), randn(lmax, channels)]
        return [x, *weights], (balance, 1e-5)
    if name == "edge_norm_silu":
        inputs = [randn(19, channels), *randn(2, 5, channels), torch.tensor([3, 0, 4, 3])]
        inputs += [*edges(4, 19), randn(channels), randn(channels)]
        return inputs, (1e-5,)
    source, target = edges(4, 7)
    if name == "softmax_by_target":
        return [randn(7, 3)], (target, 4)
    rotation, orders = rotations(layout, 7), layout.degrees_by_order
    if name == "rotate_in":
        x = randn(4, (layout.lmax + 1) ** 2, channels)
        radial = randn(7, 2 * channels * sum(layout.degrees))
        return [x, radial], (rotation, source, target, layout)
    if name == "rotate_out, one degree":
        orders = ((1,), (1, 1))
        rotation = rotation[:, layout.rows_of_degree(1), 1:4].contiguous()
    values = [randn(7, len(order) * channels) for order in orders]
    return [values, randn(7, 3)], (rotation, orders, target, 4)


def results(operation, inputs, others, dtype) -> list[torch.Tensor]:
    """Return outputs and gradients in float64."""
    autocast = dtype == torch.bfloat16
    kept = torch.float32 if autocast else dtype
    inputs, others = tree_map_only(
        torch.Tensor,
        lambda t: t.to(DEVICE, kept if t.is_floating_point() else None),
        (inputs, others),
    )
    leaves = [t.requires_grad_() for t in tree_leaves(inputs) if t.is_floating_point()]
    with torch.autocast(DEVICE, dtype) if autocast else nullcontext():
        outs = tree_leaves(operation(*inputs, *others))
    generator = torch.Generator().manual_seed(2)
    grads = [torch.randn(o.shape, generator=generator).to(o) for o in outs]
    return [t.double().cpu() for t in (*outs, *torch.autograd.grad(outs, leaves, grads))]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_backend_computes_the_plain_form(name, dtype, layout, backend):
    torch.manual_seed(0)
    inputs, others = case(name, layout)
    plain, fast = (getattr(module, name.split(",")[0]) for module in (reference, ops))
    expected = results(plain, inputs, others, torch.float64)
    found = results(fast, inputs, others, dtype)
    for value, truth in zip(found, expected, strict=True):
        assert (value - truth).norm() <= TOLERANCES[dtype] * truth.norm()


@pytest.mark.parametrize(
    "name", ["attention_logits", "layer_norm_silu", "edge_norm_silu", "equivariant_layer_norm"]
)
def test_few_programs_take_all_rows(name, monkeypatch):
    """Backward passes sum the parameters' gradients with fewer programs than rows, too."""
    need_triton()
    for limit in ("attention_logits.PROGRAMS", "norms.ROW_PROGRAMS", "norms.ATOM_PROGRAMS"):
        monkeypatch.setattr(f"dens.fast.triton.{limit}", 2)
    torch.manual_seed(0)
    inputs, others = case(name, OrderMajor(2, 2))
    expected = results(getattr(reference, name), inputs, others, torch.float64)
    with backends.using("triton"):
        found = results(getattr(ops, name), inputs, others, torch.float64)
    for value, truth in zip(found, expected, strict=True):
        assert (value - truth).norm() <= 1e-12 * truth.norm()


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of eager, triton, got 'cuda'"):
        backends.using("cuda").__enter__()


def test_without_working_kernels_the_backend_is_pytorch(monkeypatch, caplog):
    need_triton()
    device = torch.device("cuda", 7)

    def zeros(*_, **__):
        raise RuntimeError("no C compiler\nand more")

    monkeypatch.setattr(torch, "zeros", zeros)
    assert backends.backend_of(device) == "eager"
    assert "as Triton's kernels do not work on cuda:7: RuntimeError: no C compiler" in caplog.text
    assert backends.backend_of(torch.device("cpu")) == "eager"
