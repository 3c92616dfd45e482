"""Read training configs as fairchem's trainers do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from fairchem.core.common.utils import load_config

from dens.hosts import fairchem_version, install_hint
from dens.settings import ConfigError

SPLITS = ("train", "val", "test", "relax")


@contextmanager
def as_config_error(path: str | Path) -> Iterator[None]:
    """Turn errors of reading the config at ``path`` into a `ConfigError` of one line.

    Raises:
        ConfigError: also for a config of fairchem-core 2.
    """
    _refuse_of_2(path)
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename or path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} or a file it includes is not valid YAML: {reason}") from error
    except KeyError as error:
        raise ConfigError(f"{path} sets a key below {error}, which the config lacks") from error
    except (AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        # a ValueError of merging with what is no mapping
        if isinstance(error, ValueError) and "to be dict" not in reason:
            raise ConfigError(f"{path}: {reason}") from error
        raise ConfigError(
            f"{path} must be a mapping of sections, with `includes` a list: {reason}"
        ) from error


def _refuse_of_2(path: str | Path) -> None:
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # reading it tells the error
        return
    if isinstance(config, Mapping) and "runner" in config and "trainer" not in config:
        raise ConfigError(
            f"{path} is a config for fairchem-core 2 (it has runner:), and {fairchem_version()} is "
            f"installed: {install_hint(2)}"
        )


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a training config with its includes.

    Raises:
        ConfigError: it cannot be read.
    """
    with as_config_error(path):
        return load_config(str(path))[0]


def split_settings(dataset: Any) -> dict[str, dict[str, Any]]:
    """Return the settings of each split for which a config's ``dataset`` names data.

    As in trainers, a split inherits from ``train`` what it does not set itself, unless
    ``use_train_settings`` is false. Only relaxations inherit even ``src``.

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
