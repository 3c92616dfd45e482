"""The adapter to fairchem-core 1.10: glue between its trainers and models and the core of dens."""

from __future__ import annotations

import warnings

from dens import compat

compat.install()  # before the first import of fairchem, which needs what it supplies

with warnings.catch_warnings():
    # fairchem loads two files of its own in a way that torch 2.4 warns of, at every start
    warnings.simplefilter("ignore", FutureWarning)
    from dens.fairchem1.models import (
        EnergyHead,
        EquiformerV2Backbone,
        EquiformerV2DeNS,
        ForceHead,
        NoiseHead,
    )
    from dens.fairchem1.trainer import DeNSMixin, DeNSTrainer

__all__ = [
    "DeNSMixin",
    "DeNSTrainer",
    "EnergyHead",
    "EquiformerV2Backbone",
    "EquiformerV2DeNS",
    "ForceHead",
    "NoiseHead",
]
