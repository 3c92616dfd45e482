"""Trainer of fairchem-core 1.10 that trains `taylor_objective.TaylorObjective`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taylor_objective import TaylorObjective

from dens.fairchem1.train.host import ObjectiveMixin
from dens.fairchem1.train.optimizer import EpochTrainer
from dens.metrics import FORCES_MAE


class TaylorTrainer(ObjectiveMixin, EpochTrainer):
    """EquiformerV2's trainer, with the settings ``optim.taylor``."""

    objective_class = TaylorObjective
    default_metric = FORCES_MAE

    @classmethod
    def parse_objective(cls, optim: Mapping[str, Any]) -> TaylorObjective:
        return TaylorObjective(**optim["taylor"])

    def required_fields(self) -> dict[str, str]:
        return {"forces": "from which energies of displaced structures are computed"}
