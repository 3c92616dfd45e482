"""MoreRed trainer: relaxed structures with noise, in training and in validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairchem.core.common.registry import registry

from dens.fairchem1.config.methods.morered import (
    RelaxOptions,
    check_model,
    check_relaxation,
    check_targets,
    parse_settings_of,
)
from dens.fairchem1.morered.relax_dataset import relax_dataset
from dens.fairchem1.morered.relax_validation import relaxation_errors
from dens.fairchem1.train.host import ObjectiveMixin
from dens.fairchem1.train.optimizer import EpochTrainer
from dens.relax.objective import MoreRedObjective


class MoreRedMixin(ObjectiveMixin):
    """Mixin that trains MoreRed with a fairchem trainer: ``class MyTrainer(MoreRedMixin, ...)``.

    Structures get noise according to ``optim.morered``, in training and in validation, where it is
    the same every time. Neither energies nor forces are read.

    Raises:
        ConfigError: wrong settings, before any data are read.
    """

    objective_class = MoreRedObjective
    config_checks = (check_model, check_targets, check_relaxation)
    relax_schema = RelaxOptions
    default_metric = "noise_mse"
    objective: MoreRedObjective

    @classmethod
    def parse_objective(cls, optim: Mapping[str, Any]) -> MoreRedObjective:
        return MoreRedObjective(parse_settings_of(optim))

    def after_validation(self, split: str, dataset: Any) -> None:
        super().after_validation(split, dataset)
        self.log(relaxation_errors(self, dataset), split)

    def run_relaxations(self) -> None:
        """Relax the structures of ``dataset.relax``, see :func:`relax_dataset`."""
        relax_dataset(self)

    def required_fields(self) -> dict[str, str]:
        if self.objective.config.pair_share == 0:
            return {}
        return {"pos_start": "which pair_share reads (optim.morered.pair_share)"}


@registry.register_trainer("morered")
class MoreRedTrainer(MoreRedMixin, EpochTrainer):
    """EquiformerV2's trainer (schedules in epochs, EMA) with MoreRed, registered as ``morered``."""
