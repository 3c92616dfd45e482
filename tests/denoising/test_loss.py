"""Test the DeNS loss: by hand, against a plain loop, and on two ranks."""

import math

import pytest
import torch
import torch.multiprocessing as mp

from dens.denoising.loss import denoising_targets, dens_loss, l2_error
from dens.objective import Target
from dens.ranks import zero_gradient


def test_three_atoms_by_hand():
    """An atom has a force error of 5, one a noise error of 2, and a fixed one does not count."""
    zero = torch.zeros(3, 3)
    loss = dens_loss(
        forces_pred=torch.tensor([[3.0, 4, 0], [9, 9, 9], [9, 9, 9]]),
        forces=zero,
        noise_pred=torch.tensor([[9.0, 9, 9], [0, 2, 0], [9, 9, 9]]),
        noise=zero,
        noise_mask=torch.tensor([False, True, False]),
        free=torch.tensor([True, True, False]),
        force_coefficient=100.0,
        denoising_coefficient=10.0,
    )
    assert loss.forces.item() == pytest.approx(100 * 5 / 2)
    assert loss.noise.item() == pytest.approx(10 * 2 / 2)


def random_case(seed, n=40, corrupted=0.5, fixed=0.3):
    g = torch.Generator().manual_seed(seed)
    tensors = {k: torch.randn(n, 3, generator=g) for k in ("fp", "f", "np", "n")}
    mask = torch.rand(n, generator=g) < corrupted
    free = torch.rand(n, generator=g) >= fixed
    return tensors, mask, free


def call(tensors, mask, free, reduction, dtype=torch.float32):
    return dens_loss(
        forces_pred=tensors["fp"].to(dtype),
        forces=tensors["f"].to(dtype),
        noise_pred=tensors["np"].to(dtype),
        noise=tensors["n"].to(dtype),
        noise_mask=mask,
        free=free,
        force_coefficient=100.0,
        denoising_coefficient=10.0,
        reduction=reduction,
    )


def plain_loop(tensors, mask, free, reduction):
    """Compute the DeNS loss atom by atom in Python floats."""
    force_sum = noise_sum = 0.0
    n_clean = n_corrupted = 0
    for i in range(len(mask)):
        if mask[i]:
            pairs = zip(tensors["np"][i].tolist(), tensors["n"][i].tolist(), strict=True)
            noise_sum += math.sqrt(sum((a - b) ** 2 for a, b in pairs))
            n_corrupted += 1
        elif free[i]:
            pairs = zip(tensors["fp"][i].tolist(), tensors["f"][i].tolist(), strict=True)
            force_sum += math.sqrt(sum((a - b) ** 2 for a, b in pairs))
            n_clean += 1
    if reduction == "joint":
        n_clean = n_corrupted = n_clean + n_corrupted
    return 100 * force_sum / max(n_clean, 1), 10 * noise_sum / max(n_corrupted, 1)


def test_noise_counts_with_the_forces_of_its_data_set():
    """Of five atoms the last two have a force label of another data set."""
    present = torch.tensor([True, True, True, False, False])
    rows, mask = torch.tensor([True, True, False, False, False]), torch.arange(5) % 2 == 0
    values = torch.zeros(5, 3)
    base = Target("forces", values, rows, "atom", 1.0, l2_error, present=present)
    clean, noise = denoising_targets(base, values, mask, 2.0, "joint")
    assert clean.rows.tolist() == [False, True, False, False, False]
    assert noise.rows.tolist() == [True, False, True, False, False]
    assert clean.count == noise.count == 3


@pytest.mark.parametrize("reduction", ["joint", "separate"])
@pytest.mark.parametrize(("corrupted", "fixed"), [(0.5, 0.3), (1, 0.3), (0, 0.3), (0.5, 0), (0, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_plain_loop(reduction, corrupted, fixed, seed):
    case = random_case(seed, corrupted=corrupted, fixed=fixed)
    loss = call(*case, reduction)
    forces, noise = plain_loop(*case, reduction)
    assert loss.forces.item() == pytest.approx(forces, rel=1e-5, abs=1e-12)
    assert loss.noise.item() == pytest.approx(noise, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("reduction", ["joint", "separate"])
def test_order_of_atoms_does_not_matter(reduction):
    tensors, mask, free = random_case(0)
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(1))
    loss = call(tensors, mask, free, reduction, torch.float64)
    shuffled = {k: v[order] for k, v in tensors.items()}
    other = call(shuffled, mask[order], free[order], reduction, torch.float64)
    torch.testing.assert_close(torch.stack(loss), torch.stack(other), rtol=1e-12, atol=0)


def test_nothing_leaks_from_deselected_atoms():
    """NaN predicted for atoms outside a term reaches neither the loss nor the gradient."""
    tensors, mask, free = random_case(2)
    reference = call(tensors, mask, free, "joint")
    tensors["np"][~mask] = float("nan")
    tensors["fp"][mask | ~free] = float("nan")
    for name in ("fp", "np"):
        tensors[name].requires_grad_()
    loss = call(tensors, mask, free, "joint")
    assert torch.equal(torch.stack(loss), torch.stack(reference))
    sum(loss).backward()
    assert (tensors["np"].grad[~mask] == 0).all()
    assert (tensors["fp"].grad[mask | ~free] == 0).all()
    assert tensors["np"].grad[mask].isfinite().all()


def test_zero_gradient():
    layer = torch.nn.Linear(2, 3)
    layer.weight.data.fill_(float("nan"))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    total = torch.ones((), requires_grad=True) + zero_gradient([*layer.parameters(), frozen])
    assert total.item() == 1
    total.backward()
    assert (layer.weight.grad == 0).all()
    assert (layer.bias.grad == 0).all()
    assert frozen.grad is None
    assert zero_gradient([]) == 0


def _rank(rank, world_size, port, reduction, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    tensors, mask, free = _uneven_case()
    mine = _part_of(rank)
    weight = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    part = {k: v[mine] * (weight if k in ("fp", "np") else 1) for k, v in tensors.items()}
    sum(call(part, mask[mine], free[mine], reduction, torch.float64)).backward()
    # average gradients as DDP does
    torch.distributed.all_reduce(weight.grad)
    results[rank] = weight.grad.item() / world_size
    torch.distributed.destroy_process_group()


def _uneven_case():
    tensors, mask, free = random_case(5)
    mask[30:] = False  # rank 1 sees no corrupted atom
    return {k: v.double() for k, v in tensors.items()}, mask, free


def _part_of(rank):
    return slice(0, 30) if rank == 0 else slice(30, 40)


@pytest.mark.parametrize("reduction", ["joint", "separate"])
def test_two_ranks_have_the_gradient_of_one(reduction, free_port):
    tensors, mask, free = _uneven_case()
    weight = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    scaled = {k: v * (weight if k in ("fp", "np") else 1) for k, v in tensors.items()}
    sum(call(scaled, mask, free, reduction, torch.float64)).backward()

    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(_rank, args=(2, free_port, reduction, results), nprocs=2)
    assert results[0] == pytest.approx(weight.grad.item(), rel=1e-12)
    assert results[1] == results[0]
