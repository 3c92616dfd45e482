"""Run training steps on several gloo ranks, in processes that serve all tests of a module."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem, in the spawned ranks too
import datetime

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fairchem.core.common import gp_utils
from torch_geometric.data import Batch

from dens.denoising.config import parse_config
from dens.denoising.corruption import attach, corrupt
from dens.fairchem1 import DeNSTrainer
from dens.fields import DENOISING_FIELDS, select_rows
from dens.patching import replaced
from dens.random import make_generator
from helpers.stress_settings import decomposed
from helpers.structures import make_structure
from helpers.trainers import DENS, trainer_config

SIZES = [(2, 2, 2), (1, 2, 3), (2, 2, 3), (1, 2, 2), (2, 2, 2)]
ALL_FIXED = 4  # a structure without a free atom


def structures():
    rng = np.random.default_rng(3)
    found = [
        decomposed(make_structure(rng, size, sid=i, virial=True)) for i, size in enumerate(SIZES)
    ]
    found[ALL_FIXED].fixed[:] = 1
    return found


def corrupted_batch(of: list[int], corrupted: list[int]) -> Batch:
    """Return the structures ``of`` of the global batch, each with its noise there."""
    whole = Batch.from_data_list(structures())
    config = parse_config({**DENS, "prob": 1.0})
    c = corrupt(
        whole.pos,
        whole.batch,
        whole.natoms,
        config,
        make_generator(0, 0, 0),
        fixed=whole.fixed,
        eligible=torch.tensor([s in corrupted for s in range(len(SIZES))]),
    )
    attach(whole, c, whole.forces)
    atoms = torch.cat([torch.where(whole.batch == s)[0] for s in of])
    part = Batch.from_data_list([structures()[s] for s in of])
    for name, value in select_rows(DENOISING_FIELDS, whole, atoms, of).items():
        part[name] = value
    part.pos = whole.pos[atoms]
    return part


def gradients(src: str, of: list[int], corrupted: list[int], reduction: str, model: dict) -> dict:
    """Compute gradients, loss and metrics of a step on structures ``of`` with given noise."""
    settings = {**DENS, "reduction": reduction}
    trainer = DeNSTrainer(**trainer_config(src, model=model, dens=settings))
    trainer.corrupt_batch = lambda batch, *args: None
    trainer.model.train()
    trainer.step, trainer.epoch = 1, 0.5
    batch = corrupted_batch(of, corrupted)
    out = trainer._forward(batch)
    loss = trainer._compute_loss(out, batch)
    loss.backward()
    metrics = trainer._compute_metrics(out, batch, trainer.evaluator, {})
    named = trainer._unwrapped_model.named_parameters()
    return {
        **{name: parameter.grad.numpy() for name, parameter in named if parameter.requires_grad},
        "loss": np.array(loss.item()),
        "metrics": {name: metric["metric"] for name, metric in metrics.items()},
    }


def on_ranks(processes, world_size: int, port: int, function, *args, gp: bool = False) -> list:
    """Return the results of ``function(rank, *args)`` on each rank of a gloo group."""
    group = (world_size, port, gp)
    tasks = [processes.submit(_on_rank, r, group, function, args) for r in range(world_size)]
    return [task.result() for task in tasks]


def _on_rank(rank: int, group: tuple, function, args: tuple):
    world_size, port, gp = group
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(minutes=3),
    )
    if gp:
        gp_utils.setup_gp({"gp_gpus": world_size, "distributed_backend": "gloo"})
    try:
        return function(rank, *args)
    finally:
        if gp:
            gp_utils.cleanup_gp()
        dist.destroy_process_group()


def gradients_of_rank(rank, src, split, corrupted, reduction, model) -> dict:
    return gradients(src, split[rank], corrupted, reduction, model)


def gradients_with_fixed_frames(rank, src, split, corrupted, model) -> dict:
    """Compute the gradients of a rank with frames of edges that depend on their direction only."""
    given = torch.tensor([0.9, 0.3, 0.65])
    with replaced(torch, rand_like=lambda x, **_: given.to(x.dtype).expand_as(x)):
        return gradients(src, split[rank], corrupted, "joint", model)


def assert_same(grads, reference, tolerance=1e-5):
    metrics, expected = grads.pop("metrics"), dict(reference)
    assert metrics == pytest.approx(expected.pop("metrics"), rel=1e-4)
    largest = max(abs(g).max() for g in expected.values())
    for name, grad in expected.items():
        error = abs(grads[name] - grad).max()
        assert error <= tolerance * max(abs(grad).max(), 1e-2 * largest), name
