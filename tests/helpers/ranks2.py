"""Run a training step of fairchem-core 2 on several gloo ranks, in processes of a pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils, gp_utils

from helpers.stock2 import make_runner, state_of

_KEPT = ("forces_mae", "energy_mae", "denoising", "loss_", "corrupted_fraction")


def on_ranks(pool: Any, port: int, config: dict, split: list[list[int]], gp: str = "") -> dict:
    """Return gradients and logged metrics of a step, rank ``r`` on the structures ``split[r]``.

    Args:
        gp: the mode in which ranks share a graph; "" if each has its own.
    """
    tasks = [
        pool.submit(_on_rank, rank, len(split), port, config, of, gp)
        for rank, of in enumerate(split)
    ]
    found = [task.result() for task in tasks]
    return {**found[0], "corrupted": [each["corrupted"] for each in found]}


def _on_rank(rank: int, world_size: int, port: int, config: dict, of: list[int], gp: str) -> dict:
    import os

    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    setup = {"world_size": world_size, "distributed_backend": "gloo", "submit": False, "cpu": True}
    distutils.setup({**setup, "init_method": "tcp", "array_job_num": 0})
    if gp:
        gp_utils.setup_graph_parallel_groups(world_size, "gloo")
        mode = gp_utils.GPMode(gp)
        gp_utils.set_gp_config(gp_utils.GraphParallelConfig(group_size=world_size, mode=mode))
    try:
        return _step(config, of)
    finally:
        if gp:
            gp_utils.cleanup_gp()
            gp_utils._GP_CONFIG = None
        distutils.cleanup()


def _step(config: dict, of: list[int]) -> dict:
    runner = make_runner(config)
    unit, loader = runner.train_eval_unit, runner.train_dataloader
    unit.on_train_start(state_of(runner))
    batch = loader.collate_fn([loader.dataset[i] for i in of])
    gradients = {}

    def keep(*_):
        assert unit.skipped_steps == 0
        for name, parameter in unit.model.named_parameters():
            if not parameter.requires_grad:
                continue
            gradients[name.removeprefix("module.")] = parameter.grad.detach().numpy().copy()

    unit.optimizer.register_step_pre_hook(keep)
    unit.train_step(state_of(runner), batch)
    unit.on_train_end(state_of(runner))
    found = {"gradients": gradients, "metrics": {}, "corrupted": batch.sigma.tolist()}
    if unit.logger is not None:
        path = Path(unit.logger.run.folder) / "metrics.jsonl"
        line = json.loads(path.read_text().splitlines()[0])
        found["metrics"] = {k: v for k, v in line.items() if k.startswith(_KEPT)}
    return found
