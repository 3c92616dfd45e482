"""Open data sets as fairchem's trainers do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets import lmdb_dataset
from fairchem.core.datasets.base_dataset import create_dataset

from dens.data.checked import needed_fields
from dens.data.soundness import USUAL
from dens.data.survey.samples import FolderReader, find_splits
from dens.fairchem1.config.read import read_config, split_settings
from dens.fairchem1.data.joined import list_sources
from dens.fairchem1.data.safe_lmdb import SAFE_FORMATS, SafeRecords
from dens.settings import ConfigError

# settings of dataset.train that change records for training, but do not describe the data
_TRAINING_ONLY = ("transforms", "shard", "total_shards")


class ConfigReader(FolderReader):
    """Reader of data sets with the settings of a training config, for ``dens data`` commands.

    Attributes:
        config: the config with its includes.
        levels: the fields that its training needs.

    Raises:
        ConfigError: the config cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.config = read_config(path)
        self.levels = USUAL
        if self.config.get("loss_functions"):
            self.levels = needed_fields(self.config, "train")

    def sources(self, path: str | None) -> dict[str, Any]:
        """List what is at a path, or the ``src`` of the config's training and validation data.

        Raises:
            ConfigError: the config names no data.
            ValueError: nothing is there.
        """
        train = self._settings("train")
        if path is None:
            splits = split_settings(self.config.get("dataset"))
            found = {name: splits[name]["src"] for name in ("train", "val") if name in splits}
            if not found:
                raise ConfigError("the config has no dataset.train.src: name a FOLDER")
            return {name: src if isinstance(src, list) else str(src) for name, src in found.items()}
        if not _is_lmdb(train):
            return {Path(path).name: path}
        paths = list_sources(path)
        return find_splits(path) if paths == [path] else {Path(path).name: paths}

    def open(self, source: str | Path | list[str], split: str = "train"):
        """Open a data set with the settings of the config's ``dataset.train``, or another split.

        Raises:
            ConfigError: the config has no ``dataset.train``; see also :func:`open_dataset`.
        """
        return open_dataset(source, self._settings(split))

    def _settings(self, split: str) -> Mapping[str, Any]:
        dataset = self.config.get("dataset")
        train = dataset.get("train") if isinstance(dataset, Mapping) else None
        if not isinstance(train, Mapping):
            raise ConfigError("the config has no dataset.train")
        return train if split == "train" else split_settings(dataset)[split]


def _is_lmdb(settings: Mapping[str, Any]) -> bool:
    dataset_class = _dataset_class(dict(settings))
    return issubclass(dataset_class, SafeRecords | lmdb_dataset.LmdbDataset)


def open_split(settings: Mapping[str, Any], name: str):
    """Open one of `split_settings` as a trainer does: its subset, transforms and field names.

    Raises:
        ConfigError: the format is unknown, or the files are missing or not of that format.
    """
    settings = copy.deepcopy(dict(settings))
    if (own := settings.pop(f"{name}_split_settings", None)) is not None:
        settings["splits"] = {name: own}
    _dataset_class(settings)
    try:
        return create_dataset(settings, name)
    except ConfigError:
        raise
    except Exception as error:  # fairchem's readers raise anything
        message = " ".join(str(error).split()) if isinstance(error, ValueError) else repr(error)
        raise ConfigError(f"dataset.{name}.src = {settings['src']}: {message}") from error


def open_dataset(src: str | Path | list[str], settings: Mapping[str, Any] | None = None):
    """Open the data set at a path, before normalization.

    Args:
        src: an LMDB folder, or whatever path or paths the data set's format takes.
        settings: a ``dataset.train`` of a config: ``format`` (default lmdb), ``key_mapping``,
            ``lin_ref``, ``oc20_ref``, ... are applied, normalizers are not.

    Raises:
        ConfigError: the format is unknown, or the files are missing or not of that format.
    """
    settings = {name: v for name, v in (settings or {}).items() if name not in _TRAINING_ONLY}
    name = settings.get("format", "lmdb")
    dataset_class = _dataset_class(settings)
    src = list(map(str, src)) if isinstance(src, list) else str(src)
    try:
        dataset = dataset_class({**settings, "src": src})
    except Exception as error:  # fairchem's readers raise anything
        raise ConfigError(f"{src}: not a data set of the format {name}: {error!r}") from error
    if len(dataset) == 0:
        raise ConfigError(f"{src} holds no records")
    return dataset


def _dataset_class(settings: dict[str, Any]) -> type:
    """Look up the class of a format; LMDB formats become ours, which run no code from files."""
    name = settings.get("format", "lmdb")
    settings["format"] = SAFE_FORMATS.get(name, name)
    setup_imports()
    try:
        return registry.get_dataset_class(settings["format"])
    except RuntimeError as error:
        raise ConfigError(f"unknown format {name!r} (dataset.train.format)") from error
