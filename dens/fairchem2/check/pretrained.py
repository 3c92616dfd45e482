"""Check a fine-tuning: its checkpoint, its heads, and the scales with which they were trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dens.fairchem2.inspect import read_inference, scales_of
from dens.runs.check.findings import Findings
from dens.settings import ConfigError

_MODEL = "runner.train_eval_unit.model"


def is_finetuned(unit: Mapping[str, Any]) -> bool:
    """Tell whether training starts from a checkpoint; `unit` as for :func:`check_pretrained`."""
    return "checkpoint_location" in (unit.get("model") or {})


def check_pretrained(unit: Mapping[str, Any], findings: Findings) -> None:
    """Report a missing checkpoint, new heads, and scales that are not those of kept heads.

    Args:
        unit: the section of the training unit, in plain values.

    Raises:
        ConfigError: the checkpoint does not exist.
    """
    if not is_finetuned(unit):
        return
    model = unit["model"]
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
    trained = {task["name"]: task for task in read_inference(path).tasks}
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
