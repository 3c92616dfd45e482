"""One process against two gloo ranks: data parallel and graph parallel."""

import dens  # noqa: F401  # isort: skip  # before fairchem, in the spawned ranks too
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fairchem.core.common import gp_utils
from structures import make_structure
from torch_geometric.data import Batch
from trainers import DENS, MODEL, trainer_config, write_dataset

from dens.config import parse_config
from dens.corruption import attach, corrupt, make_generator
from dens.fairchem1 import DeNSTrainer

EXACT = {"use_gate_act": True, "use_grid_mlp": False}  # does not depend on the edges' random frames


def structures():
    rng = np.random.default_rng(3)
    return [make_structure(rng, size, sid=i) for i, size in enumerate(SIZES)]


SIZES = [(2, 2, 2), (1, 2, 3), (2, 2, 3), (1, 2, 2), (2, 2, 2)]
CORRUPTED = torch.tensor([True, True, False, False, False])


def corrupted_batch(of: list[int]) -> Batch:
    """The structures ``of`` of the global batch, each with the noise it has there."""
    whole = Batch.from_data_list(structures())
    config = parse_config({**DENS, "prob": 1.0})
    c = corrupt(
        whole.pos,
        whole.batch,
        whole.natoms,
        config,
        make_generator(0, 0, 0),
        fixed=whole.fixed,
        eligible=CORRUPTED,
    )
    attach(whole, c, whole.forces)
    atoms = torch.cat([torch.where(whole.batch == s)[0] for s in of])
    part = Batch.from_data_list([structures()[s] for s in of])
    for name in ("pos", "noise", "noise_mask", "noise_forces"):
        part[name] = whole[name][atoms]
    part.sigma = whole.sigma[of]
    return part


def gradients(src: str, of: list[int], reduction: str) -> tuple[float, dict]:
    """Loss and gradients of one step on structures ``of``, whose noise is given."""
    model = {**MODEL, "backbone": {**MODEL["backbone"], **EXACT}}
    settings = {**DENS, "reduction": reduction}
    trainer = DeNSTrainer(**trainer_config(src, model=model, dens=settings))
    trainer.corrupt_batch = lambda batch, *args: None
    trainer.model.train()
    trainer.step, trainer.epoch = 1, 0.5
    batch = corrupted_batch(of)
    loss = trainer._compute_loss(trainer._forward(batch), batch)
    loss.backward()
    named = trainer._unwrapped_model.named_parameters()
    return loss.item(), {name: parameter.grad.numpy() for name, parameter in named}


def _rank(rank: int, port: int, src: str, split, reduction: str, gp: bool, results) -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    if gp:
        gp_utils.setup_gp({"gp_gpus": 2, "distributed_backend": "gloo"})
    results[rank] = gradients(src, split[rank], reduction)
    dist.destroy_process_group()


def assert_same(loss, grads, reference_loss, reference, tolerance=1e-5):
    assert loss == pytest.approx(reference_loss, rel=tolerance)
    largest = max(abs(g).max() for g in reference.values())
    for name, grad in reference.items():
        error = abs(grads[name] - grad).max()
        assert error <= tolerance * max(abs(grad).max(), 1e-2 * largest), name


@pytest.mark.parametrize(
    ("split", "reduction", "gp"),
    [
        # rank 0 has all corrupted structures, rank 1 none, and fewer atoms
        ([[0, 1, 2], [3, 4]], "joint", False),
        ([[0, 1], [2, 3, 4]], "separate", False),
        ([[0, 1, 2, 3, 4]] * 2, "joint", True),
    ],
    ids=["data parallel, joint", "data parallel, separate", "graph parallel"],
)
def test_two_ranks_have_the_gradients_of_one(tmp_path, free_port, split, reduction, gp):
    src = write_dataset(tmp_path / "data")
    reference_loss, reference = gradients(src, [0, 1, 2, 3, 4], reduction)
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(_rank, args=(free_port, src, split, reduction, gp, results), nprocs=2)
    losses = [results[rank][0] for rank in (0, 1)]
    # DDP averages gradients: the ranks' losses average to the global one
    assert_same(sum(losses) / 2, results[0][1], reference_loss, reference)
    assert_same(sum(losses) / 2, results[1][1], reference_loss, reference)
