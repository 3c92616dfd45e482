"""Check the data of a config: present, labelled, of known elements, apart from each other.

It imports nothing of fairchem; it is here because the splits are opened by fairchem's data sets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from dens.data.canonical import make_alike
from dens.data.checked import NO_FIXED, CheckedRecords, differing, needed_fields
from dens.data.survey.consistency import ForceScale
from dens.data.survey.samples import as_sample, draw
from dens.fairchem1.config.inputs import is_present
from dens.fairchem1.config.read import split_settings
from dens.fairchem1.data.datasets import open_split
from dens.runs.check.findings import Findings
from dens.settings import ConfigError

FOLLOWED = 100  # sampled records whose successors are read too
_ON_DISK = {"energy": "y", "forces": "force"}  # as OC20 names them


@dataclass
class Split:
    """A split of the data and a sample of it.

    Attributes:
        sample: numbers of the records that were drawn.
        records: the data set as training reads it, see `dens.data.checked`.
        sound: those of them that training can take, by number.
    """

    name: str
    settings: Mapping[str, Any]
    dataset: Any
    sample: np.ndarray
    records: CheckedRecords
    sound: dict[int, Any] = field(default_factory=dict)

    def share(self, records: list) -> str:
        """Say how many of the sampled records are affected."""
        return f"{len(records)} of {len(self.sample)} {self.name} structures looked at"

    def label(self, i: int) -> str:
        """Name a record by its number on disk (a shuffled split has another order) and its ids."""
        data, _ = self.records.inspect(i)
        ids = (f"{name}={data[name]}" for name in ("sid", "fid") if name in data)
        return " ".join([f"record {self.dataset.indices[i]}", *ids])


def open_splits(config: Mapping[str, Any], sample: int, findings: Findings) -> dict[str, Split]:
    """Open the training and validation data, and draw a sample of each.

    Args:
        config: with ``dataset``, ``outputs``, ``loss_functions`` and ``model``.
        sample: number of structures to read of each; 0: all.
    """
    settings, splits = split_settings(config.get("dataset")), {}
    for name in ("train", "val"):
        own = dict(settings.get(name, {}))
        if not own or not is_present(own):
            continue  # missing files are reported already
        with findings.attempt("data"):
            dataset = open_split(own, name)
            if len(dataset) == 0:
                raise ConfigError(f"there are no structures in dataset.{name}.src = {own['src']}")
            records = CheckedRecords(dataset, needed_fields(config, name))
            splits[name] = Split(name, own, dataset, draw(len(dataset), sample or None), records)
    if splits:
        parts = [f"{name} {len(s.dataset)} ({s.settings['src']})" for name, s in splits.items()]
        findings.ok("data", f"{', '.join(parts)} structures")
    return splits


def check_labels(split: Split, levels: Mapping[str, str], findings: Findings) -> None:
    """Read the sample of a split, report the faulty records and keep the others in `split.sound`.

    Args:
        split: the split; its `sound` is filled.
        levels: ``atom`` or ``system`` for each field that a loss is taken of.
    """
    faults: dict[str, list[str]] = defaultdict(list)
    remedies: dict[str, str] = {}
    for i in split.sample.tolist():
        data, fault = split.records.inspect(i)
        if data is None:
            faults["cannot be read"].append(fault)
            continue
        if fault is None and "fixed" in data and bool((data.fixed != 0).all()):
            fault = "no atom is free"
        if fault is None:
            split.sound[i] = data
        else:
            faults[fault].append(split.label(i))
            remedies.setdefault(fault, _remedy(fault, data))
    # records that training skips do not end it
    skips = split.name == "train" and split.settings.get("on_bad") == "skip" and split.sound
    for fault, where in faults.items():
        first = "; ".join(where[:3]) + ("; ..." if len(where) > 3 else "")
        detail = f"{split.share(where)}: {fault}: {first}{remedies.get(fault, '')}"
        (findings.warn if skips else findings.error)("labels", detail)
    _make_alike(split, findings)
    if not faults:
        n = len(split.sound)
        labels = f"{', '.join(levels)}, all finite" if levels else "structures only"
        detail = f"{n} {split.name} structures read: {labels}"
        findings.ok("labels", detail)
        _check_marks(split, findings)


def _make_alike(split: Split, findings: Findings) -> None:
    """Do to the sound records what reading a batch does, and warn of what that leaves out."""
    records = list(split.sound.values())
    without = [data for data in records if "fixed" not in data]
    for data in without:
        data.fixed = torch.zeros(len(data.pos))
    if without:
        findings.warn("labels", f"{split.share(without)}: {NO_FIXED}")
    if removed := make_alike(records):
        findings.warn("labels", f"{split.name}: {differing(removed)}: batches leave them out")


def check_signs(split: Split, findings: Findings) -> None:
    """Compare energy differences with forces, between sound records and the ones after on disk."""
    scale, whole = ForceScale(), CheckedRecords(split.dataset.dataset)
    numbers = [int(split.dataset.indices[i]) for i in split.sound]
    following = {n + 1 for n in numbers[:FOLLOWED] if n + 1 < len(whole)}.difference(numbers)
    read = [(n, whole.inspect(n)) for n in following]
    records = {n: data for n, (data, fault) in read if fault is None}
    records |= dict(zip(numbers, split.sound.values(), strict=True))
    for number, data in sorted(records.items()):
        sample = as_sample(number, data)
        if not isinstance(sample, str) and not sample.faults:
            scale.add(sample)
    for problem in scale.sign_findings():
        findings.warn("forces", f"{split.name}: {problem}")


def _remedy(fault: str, data: Any) -> str:
    """Suggest a key_mapping for a missing label that has the name of data sets on disk."""
    if fault == "cell is missing":
        return "; for molecules set model.backbone.use_pbc to false"
    if fault == "fixed is missing":
        return (
            "; 1 for an atom that was held, else 0; if all are free, set "
            "outputs.forces.train_on_free_atoms to false"
        )
    if not fault.endswith(" is missing"):
        return ""
    renamed = [f"{old}: {new}" for new, old in _ON_DISK.items() if new not in data and old in data]
    advice = f"; set dataset.train.key_mapping to {', '.join(renamed)}" if renamed else ""
    return f" (they have {', '.join(sorted(data.keys()))}{advice})"


def _check_marks(split: Split, findings: Findings) -> None:
    """Warn if tags are missing, or if no atom is fixed although some are sub-surface."""
    records = split.sound.values()
    if not all("tags" in data for data in records):
        findings.warn("labels", f"{split.name} structures have no tags: relaxations need them")
        return
    # in molecules and bulks, all tags are 0
    buried = sum(bool((data.tags == 0).any() and (data.tags > 0).any()) for data in records)
    if buried and not any(bool((data.fixed != 0).any()) for data in records):
        findings.warn(
            "labels",
            f"{buried} of {len(records)} {split.name} structures have sub-surface atoms (tag 0), "
            "and no atom is fixed: all would be trained on and corrupted",
        )


def check_elements(splits: Mapping[str, Split], limit: int, findings: Findings) -> None:
    """Report elements that the model's embedding lacks, and drop their records from the sound.

    Args:
        splits: by name.
        limit: ``max_num_elements``: atomic numbers must be below it.
    """
    seen: set[int] = set()
    n_errors = findings.count("error")
    for split in splits.values():
        outside: dict[int, list[str]] = defaultdict(list)
        for i, data in list(split.sound.items()):
            numbers = set(torch.as_tensor(data.atomic_numbers).long().tolist())
            seen |= numbers
            if unknown := [z for z in numbers if not 1 <= z < limit]:
                del split.sound[i]
                outside[max(unknown)].append(split.label(i))
        for z, where in outside.items():
            findings.error(
                "elements",
                f"atomic number {z} in {split.share(where)} ({where[0]}): the model takes 1 to "
                f"{limit - 1} (model.backbone.max_num_elements = {limit})",
            )
    if seen and findings.count("error") == n_errors:
        last = f"{chemical_symbols[max(seen)]} ({max(seen)})"
        detail = f"{len(seen)} kinds, up to {last}; the model takes 1 to {limit - 1}"
        findings.ok("elements", detail)


def check_sizes(split: Split, optim: Mapping[str, Any], ranks: int, findings: Findings) -> None:
    """Report missing sizes of structures, which batches are balanced by."""
    if split.dataset.metadata_hasattr("natoms"):
        return
    where = f"there is no metadata.npz with natoms in {split.settings['src']}"
    balancing = optim.get("load_balancing")
    if balancing is not None and optim.get("load_balancing_on_error", "raise") == "raise":
        findings.error("data", f"{where}, which optim.load_balancing = {balancing} needs")
    elif ranks > 1:
        findings.warn("data", f"{where}: batches are not balanced between ranks")


def check_apart(splits: Mapping[str, Split], findings: Findings) -> None:
    """Warn if validation reads the training set."""
    sources = [np.atleast_1d(split.settings["src"]).tolist() for split in splits.values()]
    paths = [{Path(src).resolve() for src in listed} for listed in sources]
    if len(paths) == 2 and paths[0] & paths[1]:
        shared = ", ".join(str(path) for path in paths[0] & paths[1])
        findings.warn(
            "data",
            f"validation reads the training set, {shared}: its figures would say nothing about "
            "other structures (dataset.val.src)",
        )
