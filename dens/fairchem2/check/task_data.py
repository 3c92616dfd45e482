"""Check the data of a fairchem-core 2 config: labels of the tasks, data sets, elements, scales."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch_geometric.data import Data

from dens.data.soundness import find_fault
from dens.data.survey.samples import draw
from dens.fairchem2.check.datasets2 import Records, sources_of
from dens.runs.check.findings import Findings

FACTOR = 3.0  # a scale that is wrong by more than this factor is worth a warning
FAR = 1.0  # eV per atom, root mean square, that the references leave
_LEVELS = {"energy": "system", "forces": "atom", "stress": "system"}


@dataclass
class Sampled:
    """A sample of one split: the structures that are sound, by number, as fairchem's and ours."""

    name: str
    records: Records
    numbers: np.ndarray
    hosts: dict[int, Any] = field(default_factory=dict)
    sound: dict[int, Data] = field(default_factory=dict)


def read_sample(
    name: str, records: Records, tasks: Sequence[Mapping[str, Any]], sample: int, findings: Findings
) -> Sampled:
    """Read a sample of a split; report what cannot be read, or lacks a label of its tasks.

    Args:
        tasks: the sections of the tasks that are trained.
        sample: number of structures to read; 0: all.
    """
    found = Sampled(name, records, draw(len(records), sample or None))
    faults: dict[str, list[str]] = defaultdict(list)
    by_dataset: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for task in tasks:
        for dataset in task["datasets"]:
            by_dataset[dataset].append(task)
    for i in found.numbers.tolist():
        try:
            host = records.host[i]
            data = records.of(host)
        except Exception as error:  # a damaged record raises anything
            faults[f"cannot be read: {type(error).__name__}"].append(f"record {i}: {error}")
            continue
        if fault := _fault(host, data, by_dataset):
            faults[fault].append(f"record {i} sid={data.sid}")
        else:
            found.hosts[i], found.sound[i] = host, data
    for fault, where in faults.items():
        first = "; ".join(where[:3]) + ("; ..." if len(where) > 3 else "")
        detail = f"{len(where)} of {len(found.numbers)} {name} structures looked at: {fault}"
        findings.error("labels", f"{detail}: {first}")
    if not faults:
        labels = ", ".join(dict.fromkeys(task["property"] for task in tasks))
        n = len(found.sound)
        findings.ok("labels", f"{n} {name} structures read: {labels}, all finite")
    return found


def _fault(host: Any, data: Data, tasks: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    if data.dataset not in tasks:
        known = ", ".join(tasks)
        return f"no task has their data set {data.dataset}: the tasks have {known} (tasks.datasets)"
    levels = {}
    for task in tasks[data.dataset]:
        name, kind = task["name"], task["property"]
        if name not in host:
            advice = f"; set key_mapping: {{{kind}: {name}}}" if kind in host else ""
            return f"they have no {name}, the label of the task of that name{advice}"
        if kind in _LEVELS:
            levels[kind] = _LEVELS[kind]
    return find_fault(data, levels)


def check_elements(splits: Sequence[Sampled], limit: int, findings: Findings) -> None:
    """Report elements that the model's embedding lacks."""
    seen = {int(z) for s in splits for data in s.sound.values() for z in data.atomic_numbers}
    if not seen:
        return
    if max(seen) >= limit:
        findings.error(
            "elements",
            f"atomic number {max(seen)}: the model takes 1 to {limit - 1} (runner.train_eval_unit."
            f"model.backbone.max_num_elements = {limit})",
        )
        return
    last = f"{chemical_symbols[max(seen)]} ({max(seen)})"
    findings.ok("elements", f"{len(seen)} kinds, up to {last}; the model takes 1 to {limit - 1}")


def check_apart(runner: Mapping[str, Any], findings: Findings) -> None:
    """Warn if validation reads the training set, or if sizes of structures have to be counted."""
    loaders = (runner.get(name) for name in ("train_dataloader", "eval_dataloader"))
    train, val = (
        {Path(p).resolve() for p in sources_of(loader["dataset"])} if loader else set()
        for loader in loaders
    )
    for path in sorted(train & val):
        findings.warn(
            "data",
            f"validation reads the training set, {path}: its figures would say nothing about other "
            "structures (runner.eval_dataloader.dataset)",
        )
    for path in sorted(train | val):
        folder = path if path.is_dir() else path.parent
        if not (folder / "metadata.npz").exists():
            findings.warn(
                "data",
                f"there is no metadata.npz with natoms in {folder}: every start reads all "
                "structures for their sizes",
            )


def check_names(
    runner: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]], findings: Findings
) -> None:
    """Warn of data sets that validation leaves out: it looks for the names of tasks in the keys."""
    section = (runner.get("eval_dataloader") or {}).get("dataset") or {}
    for key, own in (section.get("dataset_configs") or {}).items():
        name = ((own.get("transforms") or {}).get("common_transform") or {}).get("dataset_name")
        of_it = [task["name"] for task in tasks if name in task["datasets"]]
        if of_it and not any(name in f"{key}.{split}" for split in own["splits"]):
            findings.warn(
                "validation",
                f"no errors of {', '.join(of_it)}: fairchem finds those of the data set {name} "
                f"under keys with its name, got {key} (runner.eval_dataloader.dataset."
                "dataset_configs)",
            )


def check_scales(train: Sampled, tasks: Sequence[Mapping[str, Any]], findings: Findings) -> None:
    """Compare normalisers and references of the tasks with a sample of the training data."""
    for task in tasks:
        records = [d for d in train.sound.values() if d.dataset in task["datasets"]]
        rmsd = (task.get("normalizer") or {}).get("rmsd")
        if len(records) < 2 or not isinstance(rmsd, int | float):
            continue
        if task["property"] == "forces":
            _compare_forces(task["name"], records, float(rmsd), findings)
        elif task["property"] == "energy":
            _compare_energies(task, records, findings)


def _compare_forces(name: str, records: Sequence[Data], rmsd: float, findings: Findings) -> None:
    forces = torch.cat([data.forces[data.fixed == 0].ravel() for data in records]).double()
    rms = float(forces.square().mean().sqrt())
    detail = f"{name}: rmsd = {rmsd:.4g}, and the sample has {rms:.4g} eV/Å"
    if rms and not 1 / FACTOR < rmsd / rms < FACTOR:
        advice = "`dens data stats` prints it"
        findings.warn("normaliser", f"{detail}: {advice} (tasks.{name}.normalizer.rmsd)")
    else:
        findings.ok("normaliser", detail)


def _compare_energies(task: Mapping[str, Any], records: Sequence[Data], findings: Findings) -> None:
    refs = (task.get("element_references") or {}).get("element_references")
    values = (refs.get("_args_") or [None])[0] if isinstance(refs, Mapping) else refs
    where = f"tasks.{task['name']}.element_references"
    coeff = np.zeros(200)
    if isinstance(values, Sequence):
        coeff[: len(values)] = values
        present = {int(z) for data in records for z in data.atomic_numbers}
        if absent := sorted(z for z in present if z >= len(values)):
            findings.error(
                "normaliser",
                f"{task['name']}: there are {len(values)} references, and the data have "
                f"{chemical_symbols[absent[-1]]}, number {absent[-1]} ({where})",
            )
            return
    left = [(d.energy - coeff[d.atomic_numbers.numpy()].sum()) / d.natoms for d in records]
    rms = float(np.sqrt(np.square(left).mean()))
    given = "less references" if values is not None else "no references"
    detail = f"{task['name']}: {given}, {rms:.3g} eV per atom are left (root mean square)"
    if rms > FAR:
        advice = "total energies need element_references, which `dens data stats` prints"
        findings.warn("normaliser", f"{detail}: {advice} ({where})")
    else:
        findings.ok("normaliser", detail)
