"""dens: train equivariant force fields with DeNS, denoising non-equilibrium structures.

The names below are loaded when they are first used: ``import dens`` itself loads neither PyTorch
nor a training framework. ``import dens.fairchem1`` registers the trainer and the models with
fairchem-core 1.10 under their short names. The names from ``DeNSConfig`` to ``relax_structures``
need torch and e3nn only.
"""

from __future__ import annotations

import importlib

__version__ = "0.2.0"

_HOME = {
    "ConfigError": "dens.settings",
    "DeNSConfig": "dens.denoising.config",
    "parse_config": "dens.denoising.config",
    "Corruption": "dens.denoising.corruption",
    "corrupt": "dens.denoising.corruption",
    "ForceEncoding": "dens.denoising.force_encoding",
    "dens_loss": "dens.denoising.loss",
    "denoising_metrics": "dens.denoising.metrics",
    "NoiseLevels": "dens.noise_levels",
    "MoreRedConfig": "dens.relax.config",
    "RelaxSettings": "dens.relax.config",
    "relax_structures": "dens.relax.loop",
    "DeNSMixin": "dens.fairchem1",
    "DeNSTrainEvalUnit": "dens.fairchem2",
    "DeNSUnitMixin": "dens.fairchem2",
    "DeNSTrainer": "dens.fairchem1",
    "EquiformerV2Backbone": "dens.fairchem1",
    "EquiformerV2DeNS": "dens.fairchem1",
    "ESCNBackbone": "dens.fairchem1",
    "ESCNNoiseHead": "dens.fairchem1",
    "ESENBackbone": "dens.fairchem1",
    "ESENNoiseHead": "dens.fairchem1",
    "EnergyHead": "dens.fairchem1",
    "ForceHead": "dens.fairchem1",
    "NoiseHead": "dens.fairchem1",
    "StressHead": "dens.fairchem1",
    "MoreRedHead": "dens.fairchem1",
    "MoreRedMixin": "dens.fairchem1",
    "MoreRedTrainer": "dens.fairchem1",
    "TimeHead": "dens.fairchem1",
    "OC22LmdbDataset": "dens.fairchem1",
    "load_calculator": "dens.fairchem1.checkpoints.calculator",
    "load_relaxer": "dens.fairchem1.morered.load",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'dens' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
