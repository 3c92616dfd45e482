"""Adapter to fairchem-core 2: a training unit that adds DeNS to stock models, such as eSEN and UMA.

Names are loaded when they are first used, since ranks find them by their dotted names.
"""

from __future__ import annotations

import importlib
from importlib import metadata

_HOME = {
    "DeNSTrainEvalUnit": "dens.fairchem2.train.unit",
    "DeNSUnitMixin": "dens.fairchem2.train.unit",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'dens.fairchem2' has no attribute {name!r}")
    _require_version_2()
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def _require_version_2() -> None:
    """Refuse another major version of the host.

    Raises:
        ImportError: names the version that is installed.
    """
    try:
        version = metadata.version("fairchem-core")
    except metadata.PackageNotFoundError:
        version = "none"
    if version.split(".")[0] != "2":
        raise ImportError(
            f"dens.fairchem2 needs fairchem-core 2, got {version}: "
            "pip install 'fairchem-dens[fairchem2]'"
        )
