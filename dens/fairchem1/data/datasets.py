"""Configs and data sets, read as fairchem's trainers read them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets.base_dataset import create_dataset

from dens.fairchem1.data.safe_lmdb import SAFE_FORMATS
from dens.settings import ConfigError

# what a training config does to single records that is not part of the data
_TRAINING_ONLY = ("transforms", "shard", "total_shards")


def open_split(settings: Mapping[str, Any], name: str):
    """One of `split_settings`, with what a trainer takes of it: its subset, transforms, names.

    Raises:
        ConfigError: an unknown format, or files that are missing or no such data.
    """
    settings = copy.deepcopy(dict(settings))
    if (own := settings.pop(f"{name}_split_settings", None)) is not None:
        settings["splits"] = {name: own}
    _dataset_class(settings)
    try:
        return create_dataset(settings, name)
    except ConfigError:
        raise
    except Exception as error:  # whatever its reader raises
        message = str(error) if isinstance(error, ValueError) else repr(error)
        raise ConfigError(f"dataset.{name}.src = {settings['src']}: {message}") from error


def open_dataset(src: str | Path, settings: Mapping[str, Any] | None = None):
    """The data set at a path, before normalisation.

    Args:
        src: an LMDB folder, or what else the data set's format takes.
        settings: a ``dataset.train`` of a config; ``format`` (lmdb by default), ``key_mapping``,
            ``lin_ref``, ``oc20_ref``, ... count, normalisers do not.

    Raises:
        ConfigError: an unknown format, or files that are missing or no such data.
    """
    settings = {name: v for name, v in (settings or {}).items() if name not in _TRAINING_ONLY}
    name = settings.get("format", "lmdb")
    dataset_class = _dataset_class(settings)
    try:
        return dataset_class({**settings, "src": str(src)})
    except Exception as error:  # whatever its reader raises
        raise ConfigError(f"{src}: not a data set of the format {name}: {error!r}") from error


def _dataset_class(settings: dict[str, Any]) -> type:
    """The class of a format; LMDB formats become those that read without running code."""
    name = settings.get("format", "lmdb")
    settings["format"] = SAFE_FORMATS.get(name, name)
    setup_imports()
    try:
        return registry.get_dataset_class(settings["format"])
    except RuntimeError as error:
        raise ConfigError(f"unknown format {name!r} (dataset.train.format)") from error


def read_metadata(dataset) -> dict[str, np.ndarray] | None:
    """The arrays of ``metadata.npz``, None where there is no such file."""
    folder = dataset.path.parent if dataset.path.is_file() else dataset.path
    if not (folder / "metadata.npz").exists():
        return None
    with np.load(folder / "metadata.npz") as file:
        return dict(file)
