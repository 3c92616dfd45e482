"""Validate each record as it is read; optionally replace bad ones.

``dataset.train`` takes

- ``on_bad``: ``error`` (default), or ``skip``: replace a bad record by the next good one;
- ``on_bad_limit``: how many different records may be bad: a number of records, or a fraction of the
  data set (default 0.01). One more is an error.

The replacement depends on the number of the bad record alone, so all ranks and resumed runs agree.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.utils.data import Dataset
from torch_geometric.data import Data

from dens.data.canonical import canonical, make_alike
from dens.data.soundness import LABELS, USUAL, find_fault
from dens.relax.objective import MoreRedObjective
from dens.safe.pickles import BadRecord
from dens.settings import ConfigError, parse_settings, setting

LIMIT = 0.01
NO_FIXED = "no field fixed, so all atoms count as free"


class BadRecordSettings(BaseModel):
    """Settings for bad records in training: two keys of ``dataset.train``."""

    model_config = ConfigDict(frozen=True, strict=True)

    on_bad: Literal["error", "skip"] = setting(
        "error or skip", "skip: the next good record takes the place of a bad one", default="error"
    )
    on_bad_limit: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = (
        setting(
            "a number of records >= 1 or a fraction in (0, 1)",
            f"how many different records may be bad, with on_bad: skip (default {LIMIT})",
            default=None,
        )
    )


def parse_on_bad(splits: Mapping[str, Mapping[str, Any] | None]) -> float | None:
    """Read how many records may be replaced: a number, a fraction below 1, or None for ``error``.

    Args:
        splits: the settings of ``train``, ``val`` and so on, as in the ``dataset`` of a config.

    Raises:
        ConfigError: names the key that is wrong, or would be ignored.
    """
    for name, settings in splits.items():
        for key in BadRecordSettings.model_fields:
            if name != "train" and (settings or {}).get(key, "error") != "error":
                raise ConfigError(
                    f"{key} is for the training data only, metrics count every structure: got "
                    f"{settings[key]!r} (dataset.{name}.{key})"
                )
    train = splits.get("train") or {}
    given = {key: train[key] for key in BadRecordSettings.model_fields if key in train}
    settings = parse_settings(BadRecordSettings, given, "dataset.train")
    limit = settings.on_bad_limit
    if settings.on_bad == "skip":
        return LIMIT if limit is None else limit
    if limit is not None:
        raise ConfigError(
            f"on_bad_limit = {limit!r} needs on_bad: skip (dataset.train.on_bad_limit)"
        )
    return None


def checked(dataset: Dataset, split: str | None, config: Mapping[str, Any]) -> CheckedRecords:
    """Wrap a split of a trainer's data so that each record is validated when it is read.

    Args:
        split: see :func:`needed_fields`.
        config: the trainer's, with ``dataset``, ``val_dataset``, ...

    Raises:
        ConfigError: see :func:`parse_on_bad`.
    """
    others = {name: config.get(f"{name}_dataset") for name in ("val", "test", "relax")}
    limit = parse_on_bad({"train": config.get("dataset"), **others})
    levels = needed_fields(config, split)
    if split != "train":
        return CheckedRecords(dataset, levels)
    if isinstance(limit, float):
        limit = math.ceil(limit * len(dataset))
    return CheckedRecords(dataset, levels, limit)


def needed_fields(config: Mapping[str, Any], split: str | None) -> dict[str, str]:
    """List the fields that the records of a split must have, with their levels.

    Args:
        config: with ``outputs``, ``loss_functions`` and ``model``, of a trainer or as in YAML.
        split: ``train`` and ``val`` need the labels of the losses, and ``train`` the ``fixed`` of
            losses of free atoms alone; all need the cell that a model with ``use_pbc`` reads.
    """
    levels = {}
    if split in ("train", "val"):
        outputs = config.get("outputs") or {}
        names = [name for term in config.get("loss_functions") or [] for name in term]
        makes_own = MoreRedObjective.section in (config.get("optim") or {})
        made = MoreRedObjective.makes if makes_own else ()
        targets = {name: outputs.get(name) or {} for name in names}
        known = {name: target.get("level", "system") for name, target in targets.items()}
        free_only = [name for name in names if targets[name].get("train_on_free_atoms", True)]
        if not names:  # an older layout
            known, free_only = {name: USUAL[name] for name in LABELS}, list(LABELS)
        levels = {name: level for name, level in known.items() if name not in made}
        if split == "train" and any(known[name] == "atom" for name in free_only):
            levels["fixed"] = "atom"
    model = config.get("model") or {}
    backbone = model.get("backbone", model) if isinstance(model, Mapping) else {}
    if isinstance(backbone, Mapping) and backbone and backbone.get("use_pbc", True):
        levels["cell"] = "system"
    return levels


class CheckedRecords(Dataset):
    """Data set that validates each structure as it is read, in its canonical form.

    A field that not all records of a batch have, or that differs in shape, is left out of the
    batch; one warning names the first. Without ``fixed``, where it is not needed, all atoms are
    free; one warning says so.

    Args:
        dataset: of PyG ``Data``.
        levels: the fields that a record must have, see :func:`dens.data.soundness.find_fault`.
        limit: replace at most this many different bad records; None: raise an error for each.

    Raises:
        BadRecord: on access to a bad record; names the file, the index and the field.
    """

    def __init__(
        self, dataset: Dataset, levels: Mapping[str, str] | None = None, limit: int | None = None
    ) -> None:
        self.dataset = dataset
        self._levels = dict(levels or {})
        self._tally = None if limit is None else _Tally(limit)
        self._said = {kind: multiprocessing.Value("b", 0) for kind in ("fixed", "fields")}

    @property
    def bad_records(self) -> int:
        """How many different records this process and its data loaders have replaced."""
        return 0 if self._tally is None else self._tally.count.value

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Data:
        for candidate in range(int(number), int(number) + len(self)):
            try:
                return self._read(candidate % len(self))
            except BadRecord as error:
                if self._tally is None:
                    raise
                self._tally.add(candidate % len(self), str(error))
        raise BadRecord(f"all {len(self)} records are bad (dataset.train.on_bad)")

    def __getitems__(self, numbers: Sequence[int]) -> list[Data]:
        """Read the records of a batch, with the same fields in all; data loaders call this."""
        records = [self[number] for number in numbers]
        removed = make_alike(records)
        for name, data in removed.items():
            if name in self._levels:
                raise BadRecord(f"{name} differs in shape between records: {_ids(data)}")
        if removed:
            self._say_once("fields", f"{differing(removed)}: left out of such batches")
        return records

    def inspect(self, number: int) -> tuple[Data | None, str | None]:
        """Read a record; return it with what is wrong with it, or None for either."""
        try:
            data = canonical(self.dataset[number])
            return data, find_fault(data, self._levels)
        except ConfigError:
            raise
        except BadRecord as error:
            return None, str(error)
        except Exception as error:  # a damaged record raises anything
            return None, f"{type(error).__name__}: {error}"

    def where(self, number: int) -> str:
        """Name the file of a record and its number there, for messages."""
        return _where(self.dataset, number)

    def _read(self, number: int) -> Data:
        data, fault = self.inspect(number)
        if fault is not None:
            where = self.where(number)
            raise BadRecord(fault if fault.startswith(where) else f"{where}: {fault}")
        if "fixed" not in data and self._levels.keys() - {"cell"}:
            self._say_once("fixed", f"{self.where(number)} and maybe others: {NO_FIXED}")
            data.fixed = torch.zeros(len(data.pos))
        return data

    def _say_once(self, kind: str, message: str) -> None:
        """Log a warning once in this process and its data loaders together."""
        with self._said[kind].get_lock():
            said, self._said[kind].value = self._said[kind].value, 1
        if not said:
            logging.warning(message)


def differing(removed: Mapping[str, Data]) -> str:
    """Describe the fields that :func:`dens.data.canonical.make_alike` has removed."""
    named = ", ".join(f"{name} (not in {_ids(data)})" for name, data in removed.items())
    return f"records differ in their fields or the shapes of these: {named}"


def _ids(data: Data) -> str:
    return " ".join(f"{name}={data[name]}" for name in ("sid", "fid") if name in data) or "others"


class _Tally:
    """Numbers of the bad records, in memory shared with the processes of a data loader."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._numbers = multiprocessing.Array("q", limit)
        self.count = multiprocessing.Value("q", 0)

    def add(self, number: int, reason: str) -> None:
        with self._numbers.get_lock():
            count = self.count.value
            if number in self._numbers[:count]:
                return
            if count == self._limit:
                raise BadRecord(
                    f"{reason}; {count} others were bad too, and no more may be "
                    "(dataset.train.on_bad_limit)"
                )
            self._numbers[count] = number
            self.count.value = count + 1
        logging.warning(
            f"{reason}: the next good record takes its place; {count + 1} bad so far, of at most "
            f"{self._limit} (dataset.train.on_bad: skip)"
        )


def _where(dataset: Any, number: int) -> str:
    while hasattr(dataset, "dataset"):  # a subset
        dataset, number = dataset.dataset, dataset.indices[number]
    if hasattr(dataset, "where"):
        return dataset.where(number)
    return f"{dataset.config.get('src')}, index {number}"
