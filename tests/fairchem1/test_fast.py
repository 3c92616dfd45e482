"""The fast path against fairchem's own modules: the same results for the same edge frames."""

import dens  # noqa: F401  # isort: skip  # before fairchem, in the spawned ranks too
import copy
import logging

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fairchem.core.common import gp_utils
from fairchem.core.common.utils import radius_graph_pbc, setup_imports
from fairchem.core.models.base import HydraModel
from structures import make_batch
from trainers import DENS, MODEL

from dens.config import parse_config
from dens.corruption import attach, corrupt, make_generator
from dens.fairchem1 import fast as fast_module
from dens.fairchem1.graph_parallel import sum_shared_gradients
from dens.fast import chunks

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
    """fairchem's path and the fast one, with the same weights."""
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


def corrupted(batch, ratio=0.5):
    config = parse_config(
        {**DENS, "prob": 1.0, "corrupt_ratio": ratio, "corrupt_fixed_atoms": True}
    )
    batch = batch.clone()
    attach(
        batch,
        corrupt(batch.pos, batch.batch, batch.natoms, config, make_generator(0, 0, 0)),
        batch.forces,
    )
    return batch


def results(model, batch, train=True):
    """Outputs that count, gradients, and the next random number."""
    model.train(train)
    model.zero_grad()
    torch.manual_seed(1)
    out = model(batch.clone())
    generator = torch.Generator().manual_seed(2)
    if train and "noise" in out:
        mask = batch.noise_mask
        out["forces"], out["noise"] = out["forces"][~mask], out["noise"][mask]
    loss = sum((v * torch.randn(v.shape, generator=generator).to(v)).sum() for v in out.values())
    loss.backward()
    return out, {n: p.grad for n, p in model.named_parameters()}, torch.rand(1)


def assert_same(stock, fast, tolerance):
    (out, grads, random), (other, other_grads, other_random) = stock, fast
    assert torch.equal(random, other_random)
    for name, value in out.items():
        if value.numel():
            assert (other[name] - value).abs().max() <= tolerance * value.abs().mean(), name
    # float32 sums that nearly cancel have no five digits
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
    stock, fast = pair(**settings)
    batch = make_batch(3) if ratio is None else corrupted(make_batch(3), ratio)
    assert_same(results(stock, batch, train), results(fast, batch, train), 1e-5)


def test_small_pieces_and_large_ones(monkeypatch):
    """How the work is cut does not matter."""
    stock, fast = pair(**PUBLISHED)
    batch = corrupted(make_batch(2))
    reference = results(stock, batch)
    monkeypatch.setattr(chunks, "_CPU", 2**15)
    assert_same(reference, results(fast, batch), 1e-5)


def test_double_precision():
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        stock, fast = pair(torch.float64, **PUBLISHED, otf_graph=False)
        torch.set_default_dtype(torch.float32)
        batch = corrupted(make_batch(3))
        batch.edge_index, batch.cell_offsets, batch.neighbors = radius_graph_pbc(batch, 4.0, 10)
        torch.set_default_dtype(torch.float64)
        for name in ("pos", "cell", "forces", "noise", "noise_forces", "sigma"):
            batch[name] = batch[name].double()
        batch.cell_offsets = batch.cell_offsets.double()
        assert_same(results(stock, batch), results(fast, batch), 1e-10)
    finally:
        torch.set_default_dtype(previous)


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
    assert not any(isinstance(m, fast_module._Attention) for m in fast.modules())
    assert_same(results(stock, make_batch(1)), results(fast, make_batch(1)), 0)


def _rank(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    gp_utils.setup_gp({"gp_gpus": 2, "distributed_backend": "gloo"})
    sum_shared_gradients()
    stock, fast = pair(**PUBLISHED)
    for ratio in (0.5, 1.0):  # 1: no edge for the force head
        batch = corrupted(make_batch(3), ratio)
        assert_same(results(stock, batch), results(fast, batch), 1e-5)
    dist.destroy_process_group()


def test_two_ranks_that_share_a_graph(free_port):
    mp.spawn(_rank, args=(free_port,), nprocs=2)
