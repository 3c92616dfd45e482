"""fairchem's LMDB data sets with restricted unpickling, and errors that name the record.

fairchem-core 1.10 unpickles anything. The classes here are its own data sets, whose methods find
the restricted reader of :mod:`dens.safe.pickles` under the name ``pickle``; fairchem's own classes
stay as they are.
"""

from __future__ import annotations

import bisect
import logging
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from fairchem.core.common.registry import registry
from fairchem.core.datasets import lmdb_dataset
from fairchem.core.datasets._utils import rename_data_object_keys
from torch_geometric.data import Data

from dens.data.canonical import canonical
from dens.data.store.lmdb import count_records, open_lmdb
from dens.fairchem1.data.joined import JoinedRecords, alike, list_sources
from dens.safe.pickles import BadRecord, load, load_record, loads, trusted

SAFE_FORMATS = {
    "lmdb": "dens_lmdb",
    "single_point_lmdb": "dens_lmdb",
    "trajectory_lmdb": "dens_lmdb",
    "oc22_lmdb": "dens_oc22_lmdb",
}
_SPLITS = ("dataset", "val_dataset", "test_dataset", "relax_dataset")


def use_safe_formats(config: dict[str, Any]) -> None:
    """Replace fairchem's LMDB formats by the safe ones, in all splits of a config, in place.

    Warns where that makes the ``lin_ref`` of ``oc22_lmdb`` take effect.

    Args:
        config: a trainer's config, with ``dataset``, ``val_dataset`` and so on.
    """
    train = config.get("dataset") or {}
    for key in _SPLITS:
        if not (split := config.get(key)):
            continue
        inherits = key != "dataset" and split.get("use_train_settings", True)
        settings = {**train, **split} if inherits else split
        name = settings.get("format", "lmdb")
        if name == "oc22_lmdb" and settings.get("lin_ref"):
            logging.warning(
                f"format: oc22_lmdb of fairchem-core 1.10 ignores lin_ref = {settings['lin_ref']}: "
                f"using format: dens_oc22_lmdb, which subtracts it ({key}.format)"
            )
        split["format"] = SAFE_FORMATS.get(name, name)


def reading_safely(parent: type) -> type:
    """Subclass one of fairchem's data sets so that its methods unpickle with restrictions."""

    def with_pickle(method: types.FunctionType, **functions: Callable) -> types.FunctionType:
        names = {
            **method.__globals__,
            "pickle": types.SimpleNamespace(**functions),
            "rename_data_object_keys": rename,
        }
        return types.FunctionType(
            method.__code__, names, method.__name__, method.__defaults__, method.__closure__
        )

    methods = {
        "__init__": with_pickle(parent.__init__, load=load, loads=loads),
        "__getitem__": with_pickle(parent.__getitem__, loads=load_record),
    }
    return type(parent.__name__, (parent,), methods)


def rename(data: Data, key_mapping: Mapping[str, str | list[str]]) -> Data:
    """Rename the fields of a record as fairchem does, but say what is wrong.

    Raises:
        BadRecord: a new name is that of a field with another value, which keeps that name.
    """
    freed = set()  # names that entries before have taken from their fields
    for old, new in key_mapping.items():
        names = [new] if isinstance(new, str) else new
        if old in data and old not in names:
            freed.add(old)
        for name in names:
            if name == old or name in freed or old not in data or name not in data:
                continue
            if not np.array_equal(*(np.asarray(data[key]).ravel() for key in (old, name))):
                raise BadRecord(
                    f"it has both {old} and {name}, with different values, and key_mapping renames "
                    f"{old} to {name}: leave out the one that is not the label "
                    f"(dataset.train.key_mapping.{old})"
                )
            _say_twice(old, name)
            del data[name]
    return rename_data_object_keys(data, key_mapping)


@cache
def _say_twice(old: str, name: str) -> None:
    logging.warning(
        f"records have both {old} and {name}, with the same values: {old} is read as {name} "
        "(dataset.train.key_mapping)"
    )


class SafeRecords:
    """Mixin for a class from :func:`reading_safely` that checks files and names bad records.

    Raises:
        ValueError: a file is truncated or no LMDB file, its entry ``length`` is wrong, or an
            ``.npz`` holds pickled objects.
        BadRecord: on access to an entry that is missing or damaged, or asks for a class or function
            that is not allowed; names the file, the key and the index.
    """

    def __new__(cls, config: dict[str, Any], *args: Any):
        if len(paths := list_sources(config["src"])) > 1:
            return JoinedRecords(config, [cls({**config, "src": path}, *args) for path in paths])
        return super().__new__(cls)

    def __init__(self, config: dict[str, Any], *args: Any) -> None:
        if config.get("lin_ref"):
            _check_npz(config["lin_ref"])
        super().__init__({**config, "src": list_sources(config["src"])[0]}, *args)

    def connect_db(self, lmdb_path: Path | None = None):
        environment = open_lmdb(lmdb_path, lambda: super(SafeRecords, self).connect_db(lmdb_path))
        with environment.begin() as transaction:
            count_records(transaction, lmdb_path)
        return environment

    def __del__(self) -> None:
        with suppress(AttributeError):  # not every parent has it; it fails if __init__ did
            super().__del__()

    def __getitem__(self, idx: int):
        try:
            return canonical(super().__getitem__(idx))
        except BadRecord as error:
            raise BadRecord(f"{self.where(idx)}: {error}") from None

    def __getitems__(self, numbers: Sequence[int]) -> list[Data]:
        """Read the records of a batch, with the same fields in all; data loaders call this."""
        return alike(self, numbers)

    def where(self, idx: int) -> str:
        """Name the file of an entry, its key there and its index, for messages."""
        path, entry = self.path, int(self.indices[idx])
        if not path.is_file():
            shard = bisect.bisect(self._keylen_cumulative, entry)
            path = sorted(path.glob("*.lmdb"))[shard]
            entry -= self._keylen_cumulative[shard - 1] if shard else 0
        return f"{path}, record {entry} (index {idx})"

    @cached_property
    def _metadata(self) -> dict[str, np.ndarray]:
        given = self.config.get("metadata_path")
        folders = (path.parent if path.is_file() else path for path in self.paths)
        candidates = [Path(given)] if given else [folder / "metadata.npz" for folder in folders]
        files = [path for path in candidates if path.is_file()]
        for path in files:
            _check_npz(path)
        try:
            return super()._metadata
        except (AssertionError, KeyError) as error:
            names = ", ".join(map(str, files))
            raise ValueError(f"{names} does not fit the records: {error}") from None


def _check_npz(path: str | Path) -> None:
    if trusted():
        return
    try:
        with np.load(path) as arrays:
            for name in arrays.files:
                arrays[name]
    except Exception as error:  # damaged archives raise many kinds
        raise ValueError(f"{path} cannot be read as arrays of numbers: {error}") from None


@registry.register_dataset("dens_lmdb")
class LmdbDataset(SafeRecords, reading_safely(lmdb_dataset.LmdbDataset)):
    """fairchem's ``lmdb``, ``single_point_lmdb`` and ``trajectory_lmdb``."""
