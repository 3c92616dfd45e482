"""One real training step of a config: the trainer is built, corrupts, and goes back and forth."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fairchem.core.common import distutils
from fairchem.core.common.utils import new_trainer_context

from dens.denoising.config import DeNSConfig
from dens.denoising.corruption import denoising_fields
from dens.fairchem1.check.data import Split
from dens.fairchem1.check.scales import limit_fits
from dens.runs.check.corruption import only
from dens.runs.check.findings import Report, counted
from dens.runs.check.memory import Footprint, measure_activations
from dens.settings import ConfigError

ATOMS_ON_CPU = 32  # in the batch of the step: a large model takes seconds and GBs for these


@contextmanager
def built(config: Mapping[str, Any], sample: int) -> Iterator[Any]:
    """The trainer of a config, on one rank, and nothing left of it afterwards.

    Args:
        config: as `dens.fairchem1.launch` reads it.
        sample: how many structures normalisers that are to be fitted are fitted on.
    """
    config = copy.deepcopy(dict(config))
    dataset = config["dataset"]
    train = dataset[0] if isinstance(dataset, list) else dataset["train"]
    train["transforms"] = limit_fits(train, sample)
    config["optim"] |= {"num_workers": 0, "load_datasets_and_model_then_exit": False}
    config |= {"world_size": 1, "gp_gpus": None, "is_debug": True, "submit": False}
    with tempfile.TemporaryDirectory() as folder:
        config |= {"run_dir": folder, "timestamp_id": "check"}
        distutils.setup_env_local()
        try:
            with new_trainer_context(config=config) as context:
                if config.get("checkpoint"):
                    context.trainer.load_checkpoint(config["checkpoint"])
                yield context.trainer
        finally:
            distutils.cleanup()


def choose_records(train: Split, batch_size: int, on_cpu: bool) -> list[Any]:
    """The batch of the step: on a GPU the largest there can be; on a CPU a small one.

    On a CPU the smallest structures of the sample are taken, until they are a batch or have
    `ATOMS_ON_CPU` atoms together. On a GPU the largest of the data set, where ``metadata.npz`` has
    their sizes, else of the sample.
    """
    by_size = sorted(train.sound, key=lambda i: int(train.sound[i].natoms))
    if on_cpu:
        chosen, atoms = by_size[:1], int(train.sound[by_size[0]].natoms)
        for i in by_size[1:batch_size]:
            atoms += int(train.sound[i].natoms)
            if atoms > ATOMS_ON_CPU:
                break
            chosen.append(i)
        return [train.sound[i] for i in chosen]
    if not train.dataset.metadata_hasattr("natoms"):
        return [train.sound[i] for i in by_size[-batch_size:]]
    return [train.dataset[int(i)] for i in sizes_of(train).argsort()[-batch_size:]]


def sizes_of(split: Split) -> np.ndarray:
    """Atoms of each structure of the data set, where it says, else of those in the sample."""
    if split.dataset.metadata_hasattr("natoms"):
        return np.asarray(split.dataset.dataset.get_metadata("natoms", split.dataset.indices))
    return np.array([int(data.natoms) for data in split.sound.values()])


def train_step(trainer: Any, records: Sequence[Any], report: Report) -> Footprint:
    """Take a step on a batch of these records, every one corrupted where the trainer is of DeNS.

    Raises:
        ConfigError: what is not finite, or which parameters have no gradient.
    """
    applies_dens = getattr(trainer, "applies_dens", False) and trainer.dens.prob > 0
    batch = trainer.collater(list(records))
    if applies_dens:  # on the trainer, which is thrown away
        trainer.dens = _forced(trainer.dens, int((batch.fixed == 0).sum()))
    trainer.epoch, trainer.step = 1.0 / max(len(trainer.train_loader), 1), 1
    trainer.model.train()
    trainer.optimizer.zero_grad()
    started = time.perf_counter()
    with measure_activations(trainer.model) as activations:
        with torch.autocast("cuda", enabled=trainer.scaler is not None):
            out = trainer._forward(batch)
            loss = trainer._compute_loss(out, batch)
        trainer._compute_metrics(out, batch, trainer.evaluator, {})
        loss.backward()
    seconds = time.perf_counter() - started
    corrupted = denoising_fields(batch) is not None
    if applies_dens and not corrupted:
        raise ConfigError("no atom was corrupted although prob was set to 1 (optim.dens)")
    if not torch.isfinite(loss):
        raise ConfigError(f"the loss of the first step is {loss.item()}")
    _check_gradients(trainer.model)
    trainer.optimizer.step()
    parameters = list(trainer.model.parameters())
    report.ok(
        "step",
        f"forward{' with corruption' if corrupted else ''} and backward on {trainer.device.type}: "
        f"{counted(len(records), 'structure')} of {len(batch.pos)} atoms in "
        f"{seconds:.2g} s, loss "
        f"{loss.item():.4g}; finite gradients in all {len(parameters)} tensors of "
        f"{sum(p.numel() for p in parameters):,} parameters",
    )
    return Footprint.of(trainer, activations(), len(batch.pos))


def _forced(dens: DeNSConfig, n_free: int) -> DeNSConfig:
    """The settings with every structure corrupted, on all atoms where a few might all be missed."""
    ratio = dens.corrupt_ratio
    hits = ratio is not None and (1 - ratio) ** n_free < 1e-6
    return only(dens, None).model_copy(
        update={"prob": 1.0, "corrupt_ratio": ratio if hits else None}
    )


def _check_gradients(model: torch.nn.Module) -> None:
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    absent = [name for name, grad in trained.items() if grad is None]
    if absent:
        raise ConfigError(
            f"{len(absent)} of {len(trained)} parameters got no gradient, on which a run of "
            f"several ranks stops: {_some(absent)}"
        )
    bad = [name for name, grad in trained.items() if not grad.isfinite().all()]
    if bad:
        raise ConfigError(
            f"the gradient of {len(bad)} of {len(trained)} parameters is not finite: {_some(bad)}"
        )


def _some(names: list[str]) -> str:
    names = [name.removeprefix("module.") for name in names]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@torch.no_grad()
def evaluation_step(trainer: Any, records: Sequence[Any], report: Report) -> None:
    """Evaluate on these records, and look for the metric that the best checkpoint is chosen by.

    Raises:
        ConfigError: there is no such metric.
    """
    batch = trainer.collater(list(records)).to(trainer.device)
    trainer.model.eval()
    with torch.autocast("cuda", enabled=trainer.scaler is not None):
        out = trainer._forward(batch)
    loss = trainer._compute_loss(out, batch)
    metrics = trainer._compute_metrics(out, batch, trainer.evaluator, {})
    metrics = trainer.evaluator.update("loss", loss.item(), metrics)
    defaults = trainer.evaluator.task_primary_metric
    primary = trainer.evaluation_metrics.get("primary_metric", defaults.get(trainer.name))
    if primary not in metrics:
        raise ConfigError(
            f"evaluation_metrics.primary_metric must be one of {', '.join(metrics)}, got "
            f"{primary!r} (evaluation_metrics.primary_metric)"
        )
    report.ok(
        "validation",
        f"{', '.join(metrics)}; the best checkpoint is that of the best {primary}",
    )
