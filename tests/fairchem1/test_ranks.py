"""One process against two or three gloo ranks: data parallel and graph parallel."""

import dens  # noqa: F401  # isort: skip  # before fairchem, in the spawned ranks too
import datetime
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fairchem.core.common import gp_utils
from structures import make_structure
from torch_geometric.data import Batch
from trainers import DENS, EXACT_MODEL, trainer_config, write_dataset

from dens.config import parse_config
from dens.corruption import attach, corrupt, make_generator
from dens.fairchem1 import DeNSTrainer

SIZES = [(2, 2, 2), (1, 2, 3), (2, 2, 3), (1, 2, 2), (2, 2, 2)]
ALL_FIXED = 4  # a structure without a free atom


def structures():
    rng = np.random.default_rng(3)
    found = [make_structure(rng, size, sid=i) for i, size in enumerate(SIZES)]
    found[ALL_FIXED].fixed[:] = 1
    return found


def corrupted_batch(of: list[int], corrupted: list[int]) -> Batch:
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
        eligible=torch.tensor([s in corrupted for s in range(len(SIZES))]),
    )
    attach(whole, c, whole.forces)
    atoms = torch.cat([torch.where(whole.batch == s)[0] for s in of])
    part = Batch.from_data_list([structures()[s] for s in of])
    for name in ("pos", "noise", "noise_mask", "noise_forces"):
        part[name] = whole[name][atoms]
    part.sigma = whole.sigma[of]
    return part


def gradients(src: str, of: list[int], corrupted: list[int], reduction: str) -> dict:
    """Gradients, loss and metrics of one step on structures ``of``, whose noise is given."""
    settings = {**DENS, "reduction": reduction}
    trainer = DeNSTrainer(**trainer_config(src, model=EXACT_MODEL, dens=settings))
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
        **{name: parameter.grad.numpy() for name, parameter in named},
        "loss": np.array(loss.item()),
        "metrics": {name: metric["metric"] for name, metric in metrics.items()},
    }


@pytest.fixture(scope="module")
def processes():
    """Three processes that have done the imports, to be ranks of one group after the other."""
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def on_ranks(processes, world_size: int, port: int, function, *args, gp: bool = False) -> list:
    """What ``function(rank, *args)`` returns on each rank of a gloo group."""
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


def _gradients_of_rank(rank, src, split, corrupted, reduction) -> dict:
    return gradients(src, split[rank], corrupted, reduction)


def assert_same(grads, reference, tolerance=1e-5):
    metrics, expected = grads.pop("metrics"), dict(reference)
    assert metrics == pytest.approx(expected.pop("metrics"), rel=1e-4)
    largest = max(abs(g).max() for g in expected.values())
    for name, grad in expected.items():
        error = abs(grads[name] - grad).max()
        assert error <= tolerance * max(abs(grad).max(), 1e-2 * largest), name


@pytest.mark.parametrize(
    ("split", "corrupted", "reduction", "gp"),
    [
        # rank 0 has all corrupted structures, rank 1 none, fewer atoms, and one that is all fixed
        ([[0, 1, 2], [3, 4]], [0, 1], "joint", False),
        ([[0, 1], [2, 3, 4]], [0, 1], "separate", False),
        # rank 2 has no free and no corrupted atom
        ([[0], [1, 2, 3], [4]], [1, 2], "joint", False),
        ([[0, 3], [1, 2], [4]], [1, 2], "separate", False),
        # nobody has a corrupted atom
        ([[0, 1, 2, 3], [4]], [], "joint", False),
        ([[0, 1, 2, 3, 4]] * 2, [0, 1], "joint", True),
        ([[0, 1, 2, 3, 4]] * 2, [], "separate", True),
    ],
    ids=["2, joint", "2, separate", "3, joint", "3, separate", "2, clean", "graph", "graph, clean"],
)
def test_ranks_have_the_gradients_of_one(
    tmp_path, processes, free_port, split, corrupted, reduction, gp
):
    """Gradients, the loss that is logged and the metrics, on every rank."""
    src = write_dataset(tmp_path / "data")
    reference = gradients(src, [0, 1, 2, 3, 4], corrupted, reduction)
    args = (src, split, corrupted, reduction)
    for of_rank in on_ranks(processes, len(split), free_port, _gradients_of_rank, *args, gp=gp):
        assert_same(of_rank, reference)


def train(src: str, batch_size: int, spoil: tuple[int, int] | None = None) -> dict:
    """Weights, noise and skipped steps after three steps of the inherited loop.

    ``spoil``: the step and structure whose energy becomes NaN.
    """
    optim = {"batch_size": batch_size, "max_epochs": 1, "ema_decay": None}
    optim["scheduler_params"] = {
        "lambda_type": "cosine", "warmup_factor": 0.2, "warmup_epochs": 0.4, "lr_min_factor": 0.1
    }  # fmt: skip
    trainer = DeNSTrainer(**trainer_config(src, model=EXACT_MODEL, optim=optim))
    noise = {}
    corrupt_batch = trainer.corrupt_batch

    def record(batch, *args):
        corrupt_batch(batch, *args)
        if not trainer.model.training:  # denoising validation
            return
        for i, structure in enumerate(batch.sample_id.tolist()):
            atoms = batch.batch == i
            noise[trainer.step, structure] = batch.noise[atoms].numpy()
            if (trainer.step, structure) == spoil:
                batch.energy[i] = float("nan")

    trainer.corrupt_batch = record
    trainer.train(disable_eval_tqdm=True)
    named = trainer._unwrapped_model.named_parameters()
    weights = {name: p.detach().numpy() for name, p in named}
    return {"noise": noise, "weights": weights, "skipped": trainer.skipped_steps}


def _train_on_rank(rank, src, batch_size, spoil) -> dict:
    return train(src, batch_size, spoil)


@pytest.mark.parametrize("world_size", [2, 3])
def test_training_does_not_depend_on_the_number_of_ranks(
    tmp_path, processes, free_port, world_size
):
    """Steps of six structures on 1, 2 and 3 ranks: the same noise, the same weights.

    The second step is spoiled on one rank, and skipped by all.
    """
    src = write_dataset(tmp_path / "data", n=18)
    alone = train(src, 6)
    structure = max(s for step, s in alone["noise"] if step == 2)
    spoil = (2, structure)
    alone = train(src, 6, spoil)
    args = (src, 6 // world_size, spoil)
    together = {}
    for result in on_ranks(processes, world_size, free_port, _train_on_rank, *args):
        together.update(result["noise"])
        assert result["skipped"] == alone["skipped"] == 1
        for name, weight in alone["weights"].items():
            # AdamW's first steps are as long for a gradient of rounding as for any other
            np.testing.assert_allclose(result["weights"][name], weight, rtol=1e-3, atol=2e-4)
    assert together.keys() == alone["noise"].keys()
    assert any(noise.any() for noise in together.values())
    for key, noise in alone["noise"].items():
        assert np.array_equal(together[key], noise)
