"""Adapter to fairchem-core 2: a training unit that adds DeNS to stock models, such as eSEN and UMA.

Names are loaded when they are first used, since ranks find them by their dotted names.
"""

from __future__ import annotations

import importlib

from dens.hosts import require_major

_HOME = {
    "DeNSTrainEvalUnit": "dens.fairchem2.train.unit",
    "DeNSUnitMixin": "dens.fairchem2.train.unit",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'dens.fairchem2' has no attribute {name!r}")
    require_major(2, "dens.fairchem2", "dens.DeNSTrainer")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
