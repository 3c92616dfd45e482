"""Check a fine-tuning: its checkpoint, its heads, and the scales with which they were trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from dens.data.references import N_ELEMENTS, References
from dens.data.survey.task_stats import format_for_tasks
from dens.runs.check.findings import Findings
from dens.settings import ConfigError

_MODEL = "runner.train_eval_unit.model"


def check_pretrained(unit: Mapping[str, Any], findings: Findings) -> None:
    """Report a missing checkpoint, new heads, and scales that are not those of kept heads.

    Args:
        unit: the section of the training unit, in plain values.

    Raises:
        ConfigError: the checkpoint does not exist.
    """
    model = unit.get("model") or {}
    if "checkpoint_location" not in model:
        return
    path, where = model["checkpoint_location"], f"{_MODEL}.checkpoint_location"
    if path is None or not Path(path).is_file():
        raise ConfigError(f"{path} does not exist ({where})")
    if model.get("heads"):
        findings.warn(
            "checkpoint",
            f"{', '.join(model['heads'])}: new heads, with random weights: the first steps are "
            f"worse than the pretrained model, whose heads stay without {_MODEL}.heads",
        )
        return
    trained = {task["name"]: task for task in tasks_of(path)}
    problems = 0
    for task in unit["tasks"]:
        name = task["name"]
        if name not in trained:
            findings.error(
                "checkpoint",
                f"there is no head for {name}: those of {path} are {', '.join(trained)} "
                "(runner.train_eval_unit.tasks)",
            )
            problems += 1
        elif found := different(task, trained[name]):
            findings.warn(
                "checkpoint",
                f"{name}: its head was trained with {found}: step 0 will not be the pretrained "
                f"model; `dens inspect {path} --dataset {task['datasets'][0]}` prints them",
            )
            problems += 1
    if not problems:
        findings.ok("checkpoint", f"{path}: heads and scales are those of the pretrained model")


def tasks_of(path: str | Path) -> list[dict[str, Any]]:
    """Read the sections of the tasks of a checkpoint for inference, as fairchem reads it.

    Raises:
        ConfigError: it is no such checkpoint.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    tasks = getattr(checkpoint, "tasks_config", None)
    if tasks is None:
        raise ConfigError(f"{path} is no checkpoint for inference of fairchem-core 2 ({_MODEL})")

    return (
        OmegaConf.to_container(tasks, resolve=True) if OmegaConf.is_config(tasks) else list(tasks)
    )


def scales_of(task: Mapping[str, Any]) -> tuple[float, float, np.ndarray]:
    """Return mean, rmsd and references of a task's section: (n,), or (0,) without them."""
    normalizer = task.get("normalizer") or {}
    refs = (task.get("element_references") or {}).get("element_references")
    values = (refs.get("_args_") or [[]])[0] if isinstance(refs, Mapping) else refs
    values = np.asarray([] if values is None else values, dtype=float)
    return float(normalizer.get("mean", 0.0)), float(normalizer.get("rmsd", 1.0)), values


def different(own: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """Name the scales of a task that are not those of a checkpoint; empty if all are."""
    (mean, rmsd, refs), (own_mean, own_rmsd, own_refs) = scales_of(trained), scales_of(own)
    found = []
    if not np.isclose(rmsd, own_rmsd):
        found.append(f"rmsd {rmsd:.6g}, not {own_rmsd:.6g}")
    if not np.isclose(mean, own_mean):
        found.append(f"mean {mean:.6g}, not {own_mean:.6g}")
    n = max(len(refs), len(own_refs))
    padded = (np.pad(values, (0, n - len(values))) for values in (refs, own_refs))
    if not np.allclose(*padded, rtol=1e-5, atol=1e-5):
        found.append("other element references" if len(refs) else "no element references")
    return " and ".join(found)


def inspect_checkpoint(path: str | Path, dataset: str | None = None) -> str:
    """Describe a checkpoint; with a data set, print its scales, under the names of our configs."""
    if dataset is not None:
        return scales_yaml(path, dataset)
    raise ValueError("not yet: dens inspect of fairchem-core 2")


def scales_yaml(path: str | Path, dataset: str) -> str:
    """Print the scales of a checkpoint's tasks for a data set, under the names of our configs.

    Raises:
        ValueError: no task of the checkpoint is for the data set.
    """
    tasks = [task for task in tasks_of(path) if dataset in task["datasets"]]
    if not tasks:
        known = sorted({name for task in tasks_of(path) for name in task["datasets"]})
        raise ValueError(f"{path} has no task for {dataset}: it has some for {', '.join(known)}")
    by_kind = {task["property"]: scales_of(task) for task in tasks}
    _, rmsd, _ = by_kind.get("forces") or next(iter(by_kind.values()))
    refs = by_kind.get("energy", (0.0, 1.0, np.zeros(0)))[2]
    coeff = np.full(N_ELEMENTS, np.nan)
    coeff[: min(len(refs), N_ELEMENTS)] = refs[:N_ELEMENTS]
    references = References(coeff, str(path)) if len(refs) else None
    header = f"{path}: {', '.join(task['name'] for task in tasks)}"
    return format_for_tasks(header, rmsd, references).rstrip()
