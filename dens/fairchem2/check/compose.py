"""Read a config of fairchem-core 2 as its program does; errors take one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairchem.core._cli import get_hydra_config_from_yaml

from dens.fairchem2.launch import describe, refuse_config, refuse_options
from dens.settings import ConfigError


def compose(path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Read a config with its defaults and overrides, completed and resolved.

    Raises:
        ConfigError: it cannot be read, is one of fairchem-core 1.10, or ``job`` has unknown keys.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path} does not exist")
    refuse_options(overrides)
    refuse_config(path)
    try:
        config = get_hydra_config_from_yaml(str(path), list(overrides))
    except Exception as error:
        raise ConfigError(describe(path, error)) from error
    if "runner" not in config:
        raise ConfigError(f"{path}: expected a section runner, got {', '.join(config)}")
    return config
