"""dens: train equivariant force fields with DeNS, denoising non-equilibrium structures.

``import dens`` registers the trainer ``dens`` and the models with fairchem-core 1.10, where that
is installed. The names below are loaded when they are first used; those of the core
(``DeNSConfig`` to ``denoising_metrics``) need torch and e3nn only.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util

__version__ = "0.1.0"

_HOME = {
    "ConfigError": "dens.config",
    "DeNSConfig": "dens.config",
    "parse_config": "dens.config",
    "Corruption": "dens.corruption",
    "corrupt": "dens.corruption",
    "ForceEncoding": "dens.force_encoding",
    "dens_loss": "dens.loss",
    "denoising_metrics": "dens.metrics",
    "DeNSMixin": "dens.fairchem1",
    "DeNSTrainer": "dens.fairchem1",
    "EquiformerV2Backbone": "dens.fairchem1",
    "EquiformerV2DeNS": "dens.fairchem1",
    "EnergyHead": "dens.fairchem1",
    "ForceHead": "dens.fairchem1",
    "NoiseHead": "dens.fairchem1",
    "OC22LmdbDataset": "dens.fairchem1",
    "load_calculator": "dens.fairchem1.checkpoints.calculator",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'dens' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def _has_fairchem1() -> bool:
    try:
        found = importlib.util.find_spec("fairchem.core") is not None
        return found and importlib.metadata.version("fairchem-core").startswith("1.")
    except ImportError:  # no namespace fairchem, or no such distribution
        return False


if _has_fairchem1():
    importlib.import_module("dens.fairchem1")
