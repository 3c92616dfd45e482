"""``dens inspect`` with fairchem-core 2: read checkpoints without running their code."""

from __future__ import annotations

import collections
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import omegaconf
import torch
from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
from omegaconf import OmegaConf
from torch import Tensor

from dens.data.references import N_ELEMENTS, References
from dens.data.survey.task_stats import format_for_tasks
from dens.fairchem2.attach import ADDED
from dens.safe.errors import ForbiddenClass, name_refused_by_torch, trusted

# what such a checkpoint may be made of, beside tensors and plain containers
_CLASSES = [
    MLIPInferenceCheckpoint,
    collections.defaultdict,
    typing.Any,
    dict,
    list,
    int,
    float,
    str,
]
_CLASSES += [omegaconf.DictConfig, omegaconf.ListConfig, omegaconf.AnyNode]
_CLASSES += [omegaconf.base.ContainerMetadata, omegaconf.base.Metadata]
_SIZES = ("sphere_channels", "num_layers", "lmax", "mmax", "cutoff", "max_neighbors", "num_experts")


@dataclass(frozen=True)
class Inference:
    """Contents of a checkpoint for inference, in plain values.

    Attributes:
        model: the section of the model.
        tasks: the sections of the tasks.
        weights: of the model, by name.
        average: their moving average, if there is one.
    """

    model: Mapping[str, Any]
    tasks: list[dict[str, Any]]
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor] | None


def read_inference(path: str | Path) -> Inference:
    """Read a checkpoint for inference, without running code from it.

    Raises:
        ValueError: the file is missing, damaged, another kind, or asks for a class or function that
            is not on the list.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a checkpoint for inference, such as inference_ckpt.pt")
    try:
        with torch.serialization.safe_globals(_CLASSES):
            found = torch.load(path, map_location="cpu", weights_only=not trusted())
    except Exception as error:  # a damaged file raises anything
        name = name_refused_by_torch(str(error))
        reason = "is damaged, or no checkpoint"
        if name is not None:
            reason = str(ForbiddenClass(name, "a checkpoint for inference does"))
        raise ValueError(f"{path} {reason}") from None
    if not isinstance(found, MLIPInferenceCheckpoint):
        raise ValueError(
            f"{path} is no checkpoint for inference of fairchem-core 2: it holds a "
            f"{type(found).__name__}"
        )
    model, tasks = _plain(found.model_config), _plain(found.tasks_config)
    return Inference(model, list(tasks), found.model_state_dict, found.ema_state_dict)


def _plain(section: Any) -> Any:
    return OmegaConf.to_container(section) if OmegaConf.is_config(section) else section


def scales_of(task: Mapping[str, Any]) -> tuple[float, float, np.ndarray]:
    """Return mean, rmsd and references of a task's section: (n,), or (0,) without them."""
    normalizer = task.get("normalizer") or {}
    refs = (task.get("element_references") or {}).get("element_references")
    values = (refs.get("_args_") or [[]])[0] if isinstance(refs, Mapping) else refs
    values = np.asarray([] if values is None else values, dtype=float)
    return float(normalizer.get("mean", 0.0)), float(normalizer.get("rmsd", 1.0)), values


def inspect_checkpoint(path: str | Path, dataset: str | None = None) -> str:
    """Describe a checkpoint; with a data set, print its scales as YAML for a config.

    Raises:
        ValueError: it cannot be read, or has no task for the data set.
    """
    folder = Path(path)
    if folder.is_dir() and (folder / "inference_ckpt.pt").is_file():  # of a step
        text = inspect_checkpoint(folder / "inference_ckpt.pt", dataset)
        resume = folder / "resume.yaml"
        also = f"\n{'resume':<24}fairchem -c {resume}" if resume.is_file() and not dataset else ""
        return text + also
    found = read_inference(path)
    if dataset is not None:
        return _scales(found, path, dataset)
    return "\n".join(f"{name:<24}{value}" for name, value in _rows(found))


def _rows(found: Inference) -> Iterator[tuple[str, Any]]:
    backbone = found.model.get("backbone") or {}
    yield "model", backbone.get("model", found.model.get("_target_", "unknown"))
    for name in _SIZES:
        if name in backbone:
            yield name, backbone[name]
    yield "parameters", f"{sum(v.numel() for v in found.weights.values()):,}"
    yield "moving average (EMA)", "yes" if found.average else "no"
    added = [name for name in found.weights if name.removeprefix("module.").startswith(ADDED)]
    yield "of DeNS", f"{len(added)} weights" if added else "nothing: it is a stock model"
    yield "heads", ", ".join(found.model.get("heads") or {}) or "unknown"
    for task in found.tasks:
        _, rmsd, refs = scales_of(task)
        given = f", {np.count_nonzero(refs)} element references" if len(refs) else ""
        yield f"task {task['name']}", f"{', '.join(task['datasets'])}; rmsd {rmsd:.6g}{given}"


def _scales(found: Inference, path: str | Path, dataset: str) -> str:
    tasks = [task for task in found.tasks if dataset in task["datasets"]]
    if not tasks:
        known = sorted({name for task in found.tasks for name in task["datasets"]})
        raise ValueError(f"{path} has no task for {dataset}: it has some for {', '.join(known)}")
    by_kind = {task["property"]: scales_of(task) for task in tasks}
    _, rmsd, _ = by_kind.get("forces") or next(iter(by_kind.values()))
    refs = by_kind.get("energy", (0.0, 1.0, np.zeros(0)))[2][:N_ELEMENTS]
    coeff = np.full(N_ELEMENTS, np.nan)
    coeff[: len(refs)] = refs
    references = References(coeff, str(path)) if len(refs) else None
    header = f"{path}: {', '.join(task['name'] for task in tasks)}"
    return format_for_tasks(header, rmsd, references).rstrip()
