"""The data of a config: whether they are there and labelled, and which elements they have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from dens.data.soundness import find_fault
from dens.data.survey.samples import draw
from dens.fairchem1.config.inputs import is_present
from dens.fairchem1.data.datasets import open_split
from dens.runs.check.findings import Report
from dens.settings import ConfigError

_ON_DISK = {"energy": "y", "forces": "force"}  # as OC20 names them


@dataclass
class Split:
    """A split of the data and a sample of it.

    Attributes:
        sample: numbers of records that were drawn.
        sound: those records that training could take, by number.
        faults: where each kind of fault was seen.
    """

    name: str
    settings: Mapping[str, Any]
    dataset: Any
    sample: np.ndarray
    sound: dict[int, Any] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def open_splits(
    settings: Mapping[str, dict[str, Any]], sample: int, report: Report
) -> dict[str, Split]:
    """Open the training and validation data, and read a sample of each.

    Args:
        settings: of the splits, see `dens.fairchem1.data.datasets.split_settings`.
        sample: how many structures of each to read.
    """
    splits = {}
    for name in ("train", "val"):
        own = dict(settings.get(name, {}))
        if not own or not is_present(own):
            continue  # what is missing has been said
        with report.attempt("data"):
            dataset = open_split(own, name)
            if len(dataset) == 0:
                raise ConfigError(f"there are no structures in dataset.{name}.src = {own['src']}")
            splits[name] = Split(name, own, dataset, draw(len(dataset), sample))
    if splits:
        parts = [f"{name} {len(s.dataset)} ({s.settings['src']})" for name, s in splits.items()]
        report.ok("data", f"{', '.join(parts)} structures")
    return splits


def check_labels(split: Split, levels: Mapping[str, str], report: Report) -> None:
    """Read the sample of a split, report the faulty records and keep the others in `split.sound`.

    Args:
        levels: the fields that losses are taken of: ``atom`` or ``system``.
    """
    remedies: dict[str, str] = {}
    for i in split.sample.tolist():
        try:
            data = split.dataset[i]
        except Exception as error:  # a damaged record raises anything
            split.faults["cannot be read"].append(f"{type(error).__name__}: {error}")
            continue
        fault = find_fault(data, {**levels, "fixed": "atom"})
        if fault is None and bool((data.fixed != 0).all()):
            fault = "no atom is free"
        if fault is None:
            split.sound[i] = data
        else:
            split.faults[fault].append(_name(split, i, data))
            remedies.setdefault(fault, _remedy(fault, data))
    # records that training skips do not end it
    skips = split.name == "train" and split.settings.get("on_bad") == "skip" and split.sound
    tell = report.warn if skips else report.error
    for fault, where in split.faults.items():
        of = f"{len(where)} of {len(split.sample)} {split.name} structures looked at"
        first = "; ".join(where[:3]) + ("; ..." if len(where) > 3 else "")
        tell("labels", f"{of}: {fault}: {first}{remedies.get(fault, '')}")
    if not split.faults:
        report.ok(
            "labels",
            f"{len(split.sound)} {split.name} structures read: {', '.join(levels)}, all finite",
        )
        _check_marks(split, report)


def _remedy(fault: str, data: Any) -> str:
    """What to do about a missing label, where it has the name that data sets use on disk."""
    if not fault.endswith(" is missing"):
        return ""
    renamed = [f"{old}: {new}" for new, old in _ON_DISK.items() if new not in data and old in data]
    advice = f"; set dataset.train.key_mapping to {', '.join(renamed)}" if renamed else ""
    return f" (they have {', '.join(sorted(data.keys()))}{advice})"


def _name(split: Split, i: int, data: Any) -> str:
    """A record's number in its files, which differs from `i` in a shuffled split, and its ids."""
    ids = (f"{name}={data[name]}" for name in ("sid", "fid") if name in data)
    return " ".join([f"record {split.dataset.indices[i]}", *ids])


def _check_marks(split: Split, report: Report) -> None:
    """Warn where tags are missing, or say that atoms should be fixed that are not."""
    records = split.sound.values()
    if not all("tags" in data for data in records):
        report.warn("labels", f"{split.name} structures have no tags: relaxations need them")
        return
    # in molecules and bulks, all tags are 0
    buried = sum(bool((data.tags == 0).any() and (data.tags > 0).any()) for data in records)
    if buried and not any(bool((data.fixed != 0).any()) for data in records):
        report.warn(
            "labels",
            f"{buried} of {len(records)} {split.name} structures have sub-surface atoms (tag 0), "
            "and no atom is fixed: all would be trained on and corrupted",
        )


def check_elements(splits: Mapping[str, Split], limit: int, report: Report) -> None:
    """Compare atomic numbers with the model's embedding; records that do not fit are dropped.

    Args:
        limit: ``max_num_elements``: atomic numbers must be below it.
    """
    seen: set[int] = set()
    n_errors = report.count("error")
    for split in splits.values():
        for i, data in list(split.sound.items()):
            numbers = set(torch.as_tensor(data.atomic_numbers).long().tolist())
            seen |= numbers
            if min(numbers) >= 1 and max(numbers) < limit:
                continue
            del split.sound[i]
            z = max(numbers) if max(numbers) >= limit else min(numbers)
            split.faults[f"atomic number {z}"].append(_name(split, i, data))
        for fault, where in split.faults.items():
            if fault.startswith("atomic number"):
                report.error(
                    "elements",
                    f"{fault} in {len(where)} of {len(split.sample)} {split.name} structures "
                    f"looked at ({where[0]}): the model takes 1 to {limit - 1} "
                    f"(model.backbone.max_num_elements = {limit})",
                )
    if seen and report.count("error") == n_errors:
        last = f"{chemical_symbols[max(seen)]} ({max(seen)})"
        report.ok("elements", f"{len(seen)} kinds, up to {last}; the model takes 1 to {limit - 1}")


def check_sizes(split: Split, optim: Mapping[str, Any], ranks: int, report: Report) -> None:
    """Look for the sizes that batches are balanced with."""
    if split.dataset.metadata_hasattr("natoms"):
        return
    where = f"there is no metadata.npz with natoms in {split.settings['src']}"
    balancing = optim.get("load_balancing")
    if balancing is not None and optim.get("load_balancing_on_error", "raise") == "raise":
        report.error("data", f"{where}, which optim.load_balancing = {balancing} needs")
    elif ranks > 1:
        report.warn("data", f"{where}: batches are not balanced between ranks")


def check_apart(splits: Mapping[str, Split], report: Report) -> None:
    """Warn where validation reads the training set."""
    paths = [
        {Path(src).resolve() for src in _listed(split.settings["src"])} for split in splits.values()
    ]
    if len(paths) == 2 and paths[0] & paths[1]:
        shared = ", ".join(str(path) for path in paths[0] & paths[1])
        report.warn(
            "data",
            f"validation reads the training set, {shared}: its figures would say nothing about "
            "other structures (dataset.val.src)",
        )


def _listed(src: Any) -> list[str]:
    return [str(path) for path in src] if isinstance(src, list | tuple) else [str(src)]
