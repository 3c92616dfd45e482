"""Adapter to fairchem-core 1.10: importing it registers trainers, models and data sets."""

from __future__ import annotations

import warnings

from dens.fairchem1 import compat
from dens.hosts import require_major

require_major(1, "dens.fairchem1", "dens.fairchem2.DeNSTrainEvalUnit")
compat.install()  # before fairchem is imported: it supplies modules that fairchem needs

# at every start fairchem loads its own files in a way that torch 2.4 warns about
warnings.filterwarnings("ignore", category=FutureWarning, module=r"fairchem\.core\.")

from dens.fairchem1.backbones.escn import ESCNBackbone, ESCNNoiseHead  # noqa: E402
from dens.fairchem1.backbones.esen import ESENBackbone, ESENNoiseHead  # noqa: E402
from dens.fairchem1.data.oc22 import OC22LmdbDataset  # noqa: E402
from dens.fairchem1.model.equiformer_v2 import (  # noqa: E402
    EnergyHead,
    EquiformerV2Backbone,
    EquiformerV2DeNS,
    ForceHead,
    NoiseHead,
)
from dens.fairchem1.model.stress_head import StressHead  # noqa: E402
from dens.fairchem1.morered.heads import MoreRedHead, TimeHead  # noqa: E402
from dens.fairchem1.morered.train import MoreRedMixin, MoreRedTrainer  # noqa: E402
from dens.fairchem1.train.trainer import DeNSMixin, DeNSTrainer  # noqa: E402

compat.repair()

__all__ = [
    "DeNSMixin",
    "DeNSTrainer",
    "ESCNBackbone",
    "ESCNNoiseHead",
    "ESENBackbone",
    "ESENNoiseHead",
    "EnergyHead",
    "EquiformerV2Backbone",
    "EquiformerV2DeNS",
    "ForceHead",
    "MoreRedHead",
    "MoreRedMixin",
    "MoreRedTrainer",
    "NoiseHead",
    "OC22LmdbDataset",
    "StressHead",
    "TimeHead",
]
