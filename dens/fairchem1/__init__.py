"""The adapter to fairchem-core 1.10: glue between its trainers and models and the core of dens."""

from __future__ import annotations

import warnings

from dens.fairchem1 import compat

compat.install()  # before the first import of fairchem, which needs what it supplies

# fairchem loads files of its own in a way that torch 2.4 warns of, at every start
warnings.filterwarnings("ignore", category=FutureWarning, module=r"fairchem\.core\.")

from dens.fairchem1.data.oc22 import OC22LmdbDataset  # noqa: E402
from dens.fairchem1.model.equiformer_v2 import (  # noqa: E402
    EnergyHead,
    EquiformerV2Backbone,
    EquiformerV2DeNS,
    ForceHead,
    NoiseHead,
)
from dens.fairchem1.train.trainer import DeNSMixin, DeNSTrainer  # noqa: E402

compat.repair()

__all__ = [
    "DeNSMixin",
    "DeNSTrainer",
    "EnergyHead",
    "EquiformerV2Backbone",
    "EquiformerV2DeNS",
    "ForceHead",
    "NoiseHead",
    "OC22LmdbDataset",
]
