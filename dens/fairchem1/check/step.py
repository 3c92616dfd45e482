"""Take one real training step of a config: build the trainer, corrupt, forward and backward."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from fairchem.core.common import distutils
from fairchem.core.common.utils import new_trainer_context

from dens.denoising.objective import DeNSObjective
from dens.fairchem1.check.data import Split
from dens.fairchem1.check.scales import limit_fits
from dens.objective import Objective
from dens.runs.check.corruption import only
from dens.runs.check.findings import Findings, counted
from dens.runs.check.memory import Footprint, measure_activations
from dens.runs.check.schedule import Sampling, check_resume
from dens.settings import ConfigError

ATOMS_ON_CPU = 32  # in the batch of the step: a large model takes seconds and GBs for these


@contextmanager
def built(config: Mapping[str, Any], sample: int) -> Iterator[Any]:
    """Build the trainer of a config on one rank, in a temporary folder, and discard it afterwards.

    Args:
        config: as `dens.fairchem1.launch` reads it.
        sample: number of structures to fit normalisers on, where they are fitted.
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


def check_resumed(trainer: Any, planned: Sampling, findings: Findings) -> None:
    """Report whether the planned run can go on from the checkpoint that the trainer has loaded.

    Raises:
        ConfigError: an epoch has another number of steps.
    """
    before, last = getattr(trainer, "_resumed_sampling", None), trainer.config["optim"]
    notice = check_resume(trainer.step, trainer.epoch, before, planned, last["max_epochs"])
    if notice:
        findings.warn("resume", notice)


def choose_records(train: Split, batch_size: int, on_cpu: bool) -> list[Any]:
    """Choose the batch of the step: the largest possible on a GPU, a small one on a CPU.

    On a CPU the smallest structures of the sample are taken, up to a batch or `ATOMS_ON_CPU` atoms
    together, but at least one. On a GPU the largest of the data set are taken if ``metadata.npz``
    has their sizes, else of the sample.
    """
    if not on_cpu and train.dataset.metadata_hasattr("natoms"):
        return train.records.__getitems__(sizes_of(train).argsort()[-batch_size:].tolist())
    by_size = sorted(train.sound.values(), key=lambda data: int(data.natoms))
    if not on_cpu:
        return by_size[-batch_size:]
    atoms = np.cumsum([int(data.natoms) for data in by_size[:batch_size]])
    return by_size[: max(1, int((atoms <= ATOMS_ON_CPU).sum()))]


def sizes_of(split: Split) -> np.ndarray:
    """Return the atoms of each structure of the data set if it has metadata, else of the sample."""
    if split.dataset.metadata_hasattr("natoms"):
        return np.asarray(split.dataset.dataset.get_metadata("natoms", split.dataset.indices))
    return np.array([int(data.natoms) for data in split.sound.values()])


def train_step(trainer: Any, records: Sequence[Any], findings: Findings) -> Footprint:
    """Take a training step on records, all corrupted if the trainer has an objective.

    Raises:
        ConfigError: the loss or a gradient is not finite, or parameters have no gradient.
    """
    batch = trainer.collater(list(records))
    objective = getattr(trainer, "objective", None)
    objective = objective and objective.corrupting_all(records[0])
    if objective is not None:  # on the trainer, which is discarded afterwards
        trainer.objective = _without_exclusions(objective, int((batch.fixed == 0).sum()))
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
    corrupted = objective is not None and bool(trainer.objective.corrupted_atoms(batch).any())
    if objective is not None and not corrupted:
        raise ConfigError(
            f"no atom was corrupted although every structure should be (optim.{objective.section})"
        )
    if not torch.isfinite(loss):
        raise ConfigError(f"the loss of the first step is {float(loss)}")
    _check_gradients(trainer.model)
    trainer.optimizer.step()
    parameters = list(trainer.model.parameters())
    findings.ok(
        "step",
        f"forward{' with corruption' if corrupted else ''} and backward on {trainer.device.type}: "
        f"{counted(len(records), 'structure')} of {len(batch.pos)} atoms in {seconds:.2g} s, loss "
        f"{float(loss):.4g}; finite gradients in all {len(parameters)} tensors of "
        f"{sum(p.numel() for p in parameters):,} parameters",
    )
    return Footprint.of(trainer, activations(), len(batch.pos))


def _without_exclusions(objective: Objective, n_free: int) -> Objective:
    """Change DeNS so that no structure is excluded, and all atoms are hit if there are few."""
    if not isinstance(objective, DeNSObjective):
        return objective
    dens = objective.config
    ratio = dens.corrupt_ratio
    hits = ratio is not None and (1 - ratio) ** n_free < 1e-6
    changes = {"corrupt_ratio": ratio if hits else None}
    return DeNSObjective(only(dens, None).model_copy(update=changes))


def _check_gradients(model: torch.nn.Module) -> None:
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    absent = [name for name, grad in trained.items() if grad is None]
    if absent:
        raise ConfigError(
            f"{len(absent)} of {len(trained)} parameters got no gradient, on which a run of "
            f"several ranks stops: {_first(absent)}"
        )
    bad = [name for name, grad in trained.items() if not grad.isfinite().all()]
    if bad:
        raise ConfigError(
            f"the gradient of {len(bad)} of {len(trained)} parameters is not finite: {_first(bad)}"
        )


def _first(names: list[str]) -> str:
    names = [name.removeprefix("module.") for name in names]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@torch.no_grad()
def evaluation_step(trainer: Any, records: Sequence[Any], findings: Findings) -> None:
    """Evaluate records and check that the metric for the best checkpoint is among the results.

    Raises:
        ConfigError: there is no such metric.
    """
    batch = trainer.collater(list(records)).to(trainer.device)
    trainer.model.eval()
    validating = getattr(trainer, "validating", nullcontext)
    with validating(), torch.autocast("cuda", enabled=trainer.scaler is not None):
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
    detail = f"{', '.join(metrics)}; the best checkpoint is that of the best {primary}"
    findings.ok("validation", detail)
