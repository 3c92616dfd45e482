"""Test that the fast path gives the results of fairchem's modules with the same edge frames."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem, in the spawned ranks too
import copy
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from fairchem.core.common.utils import setup_imports
from fairchem.core.models.base import HydraModel
from helpers.interpreter import need_triton
from helpers.precision import double, geometry_in_single, in_double
from helpers.ranks import assert_same as assert_same_step
from helpers.ranks import gradients, on_ranks
from helpers.structures import make_batch
from helpers.trainers import DENS, MODEL, write_dataset

from benchmarks.pretended import PretendedGPU
from dens import transfer
from dens.denoising.config import parse_config
from dens.denoising.corruption import attach, corrupt
from dens.denoising.loss import dens_loss
from dens.fairchem1.model.fast import layers
from dens.fairchem1.model.graph_parallel import sum_shared_gradients
from dens.fairchem1.model.layer_norm import SphericalLayerNorm
from dens.fast import backends, chunks
from dens.random import make_generator

setup_imports()

PUBLISHED = {  # OC20's recipe with fewer channels and layers
    "lmax_list": [3],
    "mmax_list": [2],
    "num_layers": 2,
    "alpha_drop": 0.1,
    "drop_path_rate": 0.1,
    "grid_resolution": 10,
}


def pair(dtype=torch.float32, **backbone) -> tuple[HydraModel, HydraModel]:
    """Build a model on fairchem's path and one on the fast path, with the same weights."""
    models = []
    for fast in (False, True):
        config = copy.deepcopy({k: v for k, v in MODEL.items() if k != "name"})
        config["backbone"].update(backbone, fast=fast)
        torch.manual_seed(0)
        models.append(HydraModel(**config).to(dtype))
    stock, fast = models
    fast.load_state_dict(stock.state_dict())
    stock.load_state_dict(fast.state_dict())
    return stock, fast


def corrupted(batch, ratio=0.5, step=0):
    config = parse_config(
        {**DENS, "prob": 1.0, "corrupt_ratio": ratio, "corrupt_fixed_atoms": True}
    )
    batch = batch.clone()
    attach(
        batch,
        corrupt(batch.pos, batch.batch, batch.natoms, config, make_generator(step, 0, 0)),
        batch.forces,
    )
    return batch


def results(model, batch, train=True):
    """Return the outputs that enter the loss, gradients, and the next random number."""
    model.train(train)
    model.zero_grad()
    torch.manual_seed(1)
    out = model(batch.clone())
    generator = torch.Generator().manual_seed(2)
    if train and "noise" in out:
        mask = batch.noise_mask
        out["forces"], out["noise"] = out["forces"][~mask], out["noise"][mask]
    weights = {
        n: torch.randn(v.shape, generator=generator, dtype=torch.float32) for n, v in out.items()
    }
    sum((v * weights[n].to(v)).sum() for n, v in out.items()).backward()
    return out, {n: p.grad for n, p in model.named_parameters()}, torch.rand(1)


def assert_outputs(out, other, tolerance):
    for name, value in out.items():
        if value.numel():
            limit = tolerance[name] * value.abs().mean()
            assert (other[name] - value).abs().max() <= limit, name


def assert_same(stock, fast, tolerance):
    """Compare outputs, gradients and their zeros, and the random numbers drawn."""
    (out, grads, random), (other, other_grads, other_random) = stock, fast
    assert torch.equal(random, other_random)
    assert_outputs(out, other, dict.fromkeys(out, tolerance))
    # sums that nearly cancel have fewer digits
    floor = 1e-3 * max(grad.abs().max() for grad in grads.values() if grad is not None)
    for name, grad in grads.items():
        if grad is None:  # a head that did not run
            assert other_grads[name] is None, name
        else:
            assert (grad == 0).all() <= (other_grads[name] == 0).all(), name
            error = (other_grads[name] - grad).abs().max()
            assert error <= tolerance * max(grad.abs().max(), floor), name


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("ratio", [None, 0.5, 1.0])
@pytest.mark.parametrize(
    "settings",
    [
        PUBLISHED,
        {},  # the demo's
        {"lmax_list": [3], "mmax_list": [3], "grid_resolution": 10},
        {"proj_drop": 0.1, "norm_type": "rms_norm_sh", "use_attn_renorm": False},
        {"share_atom_edge_embedding": True, "activation_checkpoint": True},
    ],
    ids=["published", "demo", "mmax = lmax", "other norm", "shared embedding, checkpointing"],
)
def test_outputs_gradients_and_random_numbers(settings, ratio, train):
    batch = make_batch(3) if ratio is None else corrupted(make_batch(3), ratio)
    with double():
        models = pair(torch.float64, **settings)
        stock, fast = (results(m, in_double(batch), train) for m in map(geometry_in_single, models))
    assert_same(stock, fast, 1e-10)


def test_kernels_in_a_model():
    """Compare a model on Triton's kernels with one of fairchem's modules."""
    need_triton()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = in_double(corrupted(make_batch(1))).to(device)
    settings = {"max_neighbors": 4, "num_layers": 1, "activation_checkpoint": True}
    with double():
        models = pair(torch.float64, **settings)
        stock, fast = (geometry_in_single(model.to(device)) for model in models)
        expected = results(stock, batch)
        with backends.using("triton"):
            found = results(fast, batch)
    assert_same(expected, found, 1e-10)


@pytest.mark.parametrize(
    ("norm_type", "kernels"), [("layer_norm_sh", 5), ("layer_norm", 0), ("rms_norm_sh", 0)]
)
def test_norms_that_have_kernels(norm_type, kernels):
    fast = pair(norm_type=norm_type, num_layers=2)[1]
    found = [m for m in fast.modules() if isinstance(m, SphericalLayerNorm)]
    assert len(found) == kernels


def grown(model) -> None:
    """Change weights to about the size that training gives them, none of them zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            spread = max(0.5 * p.std(correction=0).item(), 0.1 if p.dim() < 2 else 0.02)
            p.mul_(1.3).add_(torch.randn(p.shape, generator=generator), alpha=spread)


def train(model, steps=100, change=0.0, seed=0) -> list[float]:
    """Train on random labels and return the losses; ``change`` perturbs the weights first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + change * torch.randn(p.shape, generator=generator))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    model.train()
    losses, batches = [], [make_batch(3, seed=seed) for seed in range(7)]
    for step in range(steps):
        batch = corrupted(batches[step % len(batches)], 0.5, step)
        torch.manual_seed(step)
        out = model(batch)
        terms = dens_loss(
            forces_pred=out["forces"],
            forces=batch.forces,
            noise_pred=out["noise"],
            noise=batch.noise / 0.1,
            noise_mask=batch.noise_mask,
            free=batch.fixed == 0,
            force_coefficient=10.0,
            denoising_coefficient=10.0,
        )
        loss = (out["energy"].view(-1) - batch.energy).abs().mean() + terms.forces + terms.noise
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def runs():
    """Train four models alike: losses, and the models of two."""
    (stock, fast), (first, second) = pair(), (pair()[0] for _ in range(2))
    return {
        "stock": (train(stock), stock),
        "fast": (train(fast), fast),
        # rounding makes runs drift apart, as these do from weights changed in the last digit
        "controls": [train(first, change=1e-7, seed=1), train(second, change=1e-7, seed=2)],
    }


@pytest.mark.slow
def test_a_run_follows_that_of_fairchems_modules(runs):
    expected = np.array(runs["stock"][0])
    assert expected[-7:].mean() < 0.9 * expected[:7].mean()

    def drift(losses):
        return np.sqrt(np.mean((np.array(losses) / expected - 1) ** 2))

    assert drift(runs["fast"][0]) <= 3 * max(map(drift, runs["controls"]))


@pytest.mark.parametrize("weights", ["initial", "grown", "trained"])
def test_single_precision_is_as_near_to_double_as_fairchems(weights, request):
    """Measure errors by fairchem's own, as single precision lacks five digits in places."""
    settings = {} if weights == "trained" else PUBLISHED
    stock, fast = pair(**settings)
    if weights == "grown":
        grown(stock)
    if weights == "trained":
        stock.load_state_dict(request.getfixturevalue("runs")["stock"][1].state_dict())
    fast.load_state_dict(stock.state_dict())
    with double():
        exact = geometry_in_single(pair(torch.float64, **settings)[0])
        exact.load_state_dict(stock.state_dict())
    errors = {"stock": [], "fast": []}  # of each gradient, in parts of its largest element
    for seed in range(3):
        batch = corrupted(make_batch(3, seed=seed))
        with double():
            _, truth, drawn = results(exact, in_double(batch))
        found = {"stock": results(stock, batch), "fast": results(fast, batch)}
        assert_outputs(
            found["stock"][0], found["fast"][0], {"energy": 1e-6, "forces": 1e-5, "noise": 1e-5}
        )
        for name, (_, grads, random) in found.items():
            assert random == drawn
            errors[name] += [
                ((grads[n] - true).abs().max() / true.abs().max()).item()
                for n, true in truth.items()
                if true.any()
            ]
    stock_errors, fast_errors = (np.array(errors[name]) for name in ("stock", "fast"))
    assert np.sqrt(np.mean(fast_errors**2)) <= 2 * np.sqrt(np.mean(stock_errors**2))
    assert np.median(fast_errors / stock_errors) <= 1.5


def test_small_pieces_and_large_ones(monkeypatch):
    """The size of the chunks of work does not change the results."""
    with double():
        stock, fast = map(geometry_in_single, pair(torch.float64, **PUBLISHED))
        batch = in_double(corrupted(make_batch(2)))
        reference = results(stock, batch)
        monkeypatch.setattr(chunks, "_CPU", 2**15)
        assert_same(reference, results(fast, batch), 1e-10)


@pytest.mark.parametrize("ratio", [None, 0.5, 1.0])
def test_results_on_a_gpu_are_those_of_a_cpu(ratio):
    """Its graph, frames, force encoding and selection of edges are other code."""
    batch = make_batch(3) if ratio is None else corrupted(make_batch(3), ratio)
    with double():
        (_, model), batch = pair(torch.float64, **PUBLISHED), in_double(batch)
        expected = results(model, batch)
        with PretendedGPU() as gpu:
            gpu.put(model)
            moved = transfer.to_device(batch, torch.device("cpu"))
            found = results(model, moved)
    assert_same(expected, found, 1e-5)  # fairchem rounds cells to single precision


def test_zero_gradients_where_parameters_do_not_matter():
    _, grads, _ = results(pair()[1], corrupted(make_batch(2)))
    for name in ("energy.energy_block.grid_mlp.0.weight", "forces.force_block.proj.bias"):
        assert grads[f"output_heads.{name}"].eq(0).all(), name


def test_autocast_stays_near():
    stock, fast = pair(**{**PUBLISHED, "alpha_drop": 0.0, "drop_path_rate": 0.0})
    batch = corrupted(make_batch(2))
    exact, _, _ = results(stock, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, grads, _ = results(fast, batch)
        reference, _, _ = results(stock, batch)
    for name, value in exact.items():
        error = (rounded[name] - value).abs().mean()
        assert error < 2 * (reference[name] - value).abs().mean() + 1e-3 * value.abs().mean(), name
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"use_gate_act": True}, "use_gate_act = True"), ({"use_grid_mlp": False}, "use_grid_mlp")],
)
def test_what_is_not_covered_is_named_and_left_to_fairchem(caplog, settings, message):
    with caplog.at_level(logging.WARNING):
        stock, fast = pair(**settings)
    assert [message in record.message for record in caplog.records] == [True]
    assert not any(isinstance(m, layers._Attention) for m in fast.modules())
    assert_same(results(stock, make_batch(1)), results(fast, make_batch(1)), 0)


@pytest.fixture(scope="module")
def processes():
    """Pool of two spawned processes with the imports done."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def _compare_on_rank(rank: int) -> None:
    sum_shared_gradients()
    with double():
        stock, fast = map(geometry_in_single, pair(torch.float64, **PUBLISHED))
        for ratio in (0.5, 1.0):  # 1: no edge for the force head
            batch = in_double(corrupted(make_batch(3), ratio))
            assert_same(results(stock, batch), results(fast, batch), 1e-10)


def test_two_ranks_that_share_a_graph(processes, free_port):
    on_ranks(processes, 2, free_port, _compare_on_rank, gp=True)


def gradients_of_a_step(src: str, of: list[int]) -> dict:
    """Gradients of helpers.ranks on the fast path, with frames that depend on the edge alone."""

    def fixed(like):
        return torch.tensor([0.9, 0.6, 0.75]).to(like).expand_as(like)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", fixed)
        model = {**MODEL, "backbone": {**MODEL["backbone"], "fast": True}}
        return gradients(src, of, [0, 1], "joint", model)


def _gradients_of_rank(rank: int, src: str, split: list[list[int]]) -> dict:
    return gradients_of_a_step(src, split[rank])


def test_two_ranks_have_the_gradients_of_one(tmp_path, processes, free_port):
    """Rank 0 has all corrupted structures, so the noise head of rank 1 sees no edge."""
    src, split = write_dataset(tmp_path / "data"), [[0, 1, 2], [3, 4]]
    alone = gradients_of_a_step(src, [0, 1, 2, 3, 4])
    for found in on_ranks(processes, 2, free_port, _gradients_of_rank, src, split):
        assert_same_step(found, alone)
