"""Open data sets as fairchem's trainers do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets.base_dataset import create_dataset

from dens.data.survey.samples import FolderReader
from dens.fairchem1.config.read import read_config
from dens.fairchem1.data.safe_lmdb import SAFE_FORMATS
from dens.settings import ConfigError

# settings of dataset.train that change records for training, but do not describe the data
_TRAINING_ONLY = ("transforms", "shard", "total_shards")


class ConfigReader(FolderReader):
    """Reader of data sets with the settings of a training config, for ``dens data`` commands.

    Attributes:
        config: the config with its includes.

    Raises:
        ConfigError: the config cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.config = read_config(path)

    def open(self, src: str | Path):
        """Open the data set at `src` with the settings of the config's ``dataset.train``.

        Raises:
            ConfigError: the config has no ``dataset.train``; see also :func:`open_dataset`.
        """
        dataset = self.config.get("dataset")
        train = dataset.get("train") if isinstance(dataset, Mapping) else None
        if not isinstance(train, Mapping):
            raise ConfigError("the config has no dataset.train")
        return open_dataset(src, train)


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


def open_dataset(src: str | Path, settings: Mapping[str, Any] | None = None):
    """Open the data set at a path, before normalization.

    Args:
        src: an LMDB folder, or whatever path the data set's format takes.
        settings: a ``dataset.train`` of a config: ``format`` (default lmdb), ``key_mapping``,
            ``lin_ref``, ``oc20_ref``, ... are applied, normalizers are not.

    Raises:
        ConfigError: the format is unknown, or the files are missing or not of that format.
    """
    settings = {name: v for name, v in (settings or {}).items() if name not in _TRAINING_ONLY}
    name = settings.get("format", "lmdb")
    dataset_class = _dataset_class(settings)
    try:
        return dataset_class({**settings, "src": str(src)})
    except Exception as error:  # fairchem's readers raise anything
        raise ConfigError(f"{src}: not a data set of the format {name}: {error!r}") from error


def _dataset_class(settings: dict[str, Any]) -> type:
    """Look up the class of a format; LMDB formats become ours, which run no code from files."""
    name = settings.get("format", "lmdb")
    settings["format"] = SAFE_FORMATS.get(name, name)
    setup_imports()
    try:
        return registry.get_dataset_class(settings["format"])
    except RuntimeError as error:
        raise ConfigError(f"unknown format {name!r} (dataset.train.format)") from error
