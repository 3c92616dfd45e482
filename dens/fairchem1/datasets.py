"""fairchem's data sets, opened as its trainers open them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config, setup_imports

from dens.config import ConfigError

# what a training config does to single records that is not part of the data
_TRAINING_ONLY = ("transforms", "shard", "total_shards")


def read_config(path: str | Path) -> dict[str, Any]:
    """A training config with its includes.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return load_config(str(path))[0]
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename or path}: {error.strerror}") from error
    except Exception as error:  # yaml and fairchem raise many kinds
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error


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
    setup_imports()
    try:
        dataset_class = registry.get_dataset_class(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown format {name!r} (dataset.train.format)") from error
    try:
        return dataset_class({**settings, "src": str(src)})
    except Exception as error:  # whatever its reader raises
        raise ConfigError(f"{src}: not a data set of the format {name}: {error!r}") from error


def read_metadata(dataset) -> dict[str, np.ndarray] | None:
    """The arrays of ``metadata.npz``, None where there is no such file."""
    folder = dataset.path.parent if dataset.path.is_file() else dataset.path
    if not (folder / "metadata.npz").exists():
        return None
    with np.load(folder / "metadata.npz") as file:
        return dict(file)
