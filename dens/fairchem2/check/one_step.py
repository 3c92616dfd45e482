"""Take one training step of a fairchem-core 2 config, on a few structures, in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import hydra
import torch
from fairchem.core.common import distutils
from torch.utils.data import DataLoader

from dens.runs.check.findings import Findings

STRUCTURES = 4  # of the step's batch: it must also fit a CPU


def on_cpu(config: Any) -> bool:
    """Tell whether this process computes on the CPU: as the config says, or without a GPU."""
    return "CPU" in str(config.job.device_type) or not torch.cuda.is_available()


@contextmanager
def process_group(cpu: bool) -> Iterator[None]:
    """Set up the process group of one rank, which fairchem's units need; leave one that is there.

    Args:
        cpu: whether the step runs on the CPU.
    """
    if distutils.initialized():
        yield
        return
    distutils.setup_env_local()
    setup = {"world_size": 1, "distributed_backend": "gloo" if cpu else "nccl", "cpu": cpu}
    distutils.setup({**setup, "submit": False, "init_method": "tcp", "array_job_num": 0})
    try:
        yield
    finally:
        distutils.cleanup()


def choose(structures: dict[int, Any]) -> list[Any]:
    """Choose the smallest structures of a sample."""
    return sorted(structures.values(), key=lambda data: int(data.natoms))[:STRUCTURES]


def build_unit(config: Any) -> Any:
    """Build the training unit of a config with its model.

    Raises:
        ConfigError: as the unit does.
    """
    try:
        return hydra.utils.instantiate(config.runner.train_eval_unit)
    except Exception as error:
        raise (error.__cause__ or error) from None  # the same without Hydra's lines about the call


def train_step(
    config: Any, unit: Any, loader: DataLoader, structures: Sequence[Any], findings: Findings
) -> None:
    """Train a unit for the first step of a run, and report what came out.

    Args:
        config: of the run.
        unit: the run's training unit.
        loader: of its training data, for the length of the run.
        structures: those of the step.
        findings: where to report.
    """
    runner = config.runner
    collate = hydra.utils.instantiate(runner.train_dataloader.collate_fn)
    batch = collate(list(structures))
    phase = SimpleNamespace(
        dataloader=loader, max_steps=runner.get("max_steps"), max_epochs=runner.get("max_epochs")
    )
    state = SimpleNamespace(train_state=phase)
    before = {name: p.detach().clone() for name, p in unit.model.named_parameters()}
    torch.manual_seed(config.job.seed)
    unit.announces = False
    unit.on_train_start(state)
    started = time.perf_counter()
    unit.train_step(state, batch)
    took = time.perf_counter() - started
    loss = float(unit.last_loss)
    atoms = int(batch.natoms.sum())
    detail = f"loss {loss:.4g} of {len(structures)} structures, {atoms} atoms, in {took:.2g} s"
    if unit.last_grad_norm is not None:
        detail += f"; gradient norm {float(unit.last_grad_norm):.4g}"
    if not math.isfinite(loss):
        findings.error("step", f"the loss is not finite: {detail}")
        return
    after = dict(unit.model.named_parameters())
    bad = [name for name, p in after.items() if not bool(p.isfinite().all())]
    still = [n for n, p in after.items() if p.requires_grad and torch.equal(p.detach(), before[n])]
    if bad:
        findings.error("step", f"parameters are not finite after it, such as {bad[0]}")
        return
    size = sum(p.numel() for p in after.values())
    findings.ok("step", f"{detail}; {size:,} parameters, on {next(iter(after.values())).device}")
    if len(still) == len(after):
        findings.warn("step", "no parameter changed: is the learning rate 0?")
