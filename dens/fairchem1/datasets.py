"""Configs and data sets, read as fairchem's trainers read them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config, setup_imports
from fairchem.core.datasets.base_dataset import create_dataset

from dens.config import ConfigError
from dens.fairchem1.records import SAFE_FORMATS

SPLITS = ("train", "val", "test", "relax")

# what a training config does to single records that is not part of the data
_TRAINING_ONLY = ("transforms", "shard", "total_shards")


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turn the errors of reading the config at ``path`` into a `ConfigError` of one line."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename or path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} or a file it includes is not valid YAML: {reason}") from error
    except KeyError as error:
        raise ConfigError(f"{path} sets a key below {error}, which the config lacks") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    except (AttributeError, TypeError) as error:
        raise ConfigError(
            f"{path} must be a mapping of sections, with `includes` a list: {error}"
        ) from error


def read_config(path: str | Path) -> dict[str, Any]:
    """A training config with its includes.

    Raises:
        ConfigError: it cannot be read.
    """
    with explained(path):
        return load_config(str(path))[0]


def split_settings(dataset: Any) -> dict[str, dict[str, Any]]:
    """The settings of the splits that a config's ``dataset`` has data for, by name.

    As trainers do, a split takes from ``train`` what it does not set itself, unless
    ``use_train_settings`` is false. Only relaxations take even their ``src`` from there.

    Raises:
        ConfigError: the section or a split is no mapping.
    """
    if isinstance(dataset, list):  # an older layout: train, val, test
        dataset = dict(zip(SPLITS, dataset, strict=False))
    if not isinstance(dataset, Mapping):
        raise ConfigError(f"dataset must be a mapping with train, val, ..., got {dataset!r}")
    splits = {name: dataset.get(name) or {} for name in SPLITS}
    for name, split in splits.items():
        if not isinstance(split, Mapping):
            raise ConfigError(f"dataset.{name} must be a mapping with src, got {split!r}")
    found = {}
    for name, split in splits.items():
        merged = dict(split)
        if split.get("use_train_settings", True):
            merged = {**splits["train"], **split}
        if "src" in (merged if split and name == "relax" else split):
            found[name] = merged
    return found


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
