"""DeNS trainer: what DeNS needs of config, model and data, beside the steps of any objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common.registry import registry
from torch import Tensor
from torch.nn import Parameter

from dens.data.checked import checked
from dens.denoising.config import DeNSConfig
from dens.denoising.corruption import denoising_fields
from dens.denoising.force_encoding import ForceEncoding
from dens.denoising.objective import DeNSObjective
from dens.fairchem1.backbones.attached import check_gradient_scales
from dens.fairchem1.config.methods.dens import check_model_classes, check_targets, parse_dens
from dens.fairchem1.train.host import ObjectiveMixin
from dens.fairchem1.train.optimizer import EpochTrainer
from dens.fairchem1.train.relaxation import safe_lbfgs
from dens.metrics import FORCES_MAE
from dens.patching import replaced
from dens.ranks import zero_gradient
from dens.settings import ConfigError

_NOISE_OUTPUT = {"property": "noise", "level": "atom"}


class DeNSMixin(ObjectiveMixin):
    """Mixin that adds DeNS to a fairchem trainer: ``class MyTrainer(DeNSMixin, OCPTrainer)``.

    Training batches are corrupted according to ``optim.dens``; validation, prediction and
    relaxation are the parent's, on clean structures. The model needs a backbone that encodes forces
    and a noise head, such as those of :mod:`dens.fairchem1.model.equiformer_v2`.

    Raises:
        ConfigError: wrong settings, before any data are read; data without a field that DeNS
            reads, before the first step.
    """

    objective_class = DeNSObjective
    config_checks = (check_model_classes, check_targets)
    default_metric = FORCES_MAE
    objective: DeNSObjective
    _dens_parameters: list[Parameter]  # of force encodings and noise heads

    @classmethod
    def parse_objective(cls, optim: Mapping[str, Any]) -> DeNSObjective:
        return DeNSObjective(parse_dens(optim))

    @property
    def dens(self) -> DeNSConfig:
        """The settings ``optim.dens``."""
        return self.objective.config

    @dens.setter
    def dens(self, config: DeNSConfig) -> None:
        self.objective = DeNSObjective(config)

    def required_fields(self) -> dict[str, str]:
        needs = {"forces": "which DeNS encodes (dataset.train.key_mapping renames fields)"}
        for field, setting in self.dens.required_fields.items():
            needs[field] = f"which {setting} reads (optim.dens.{setting})"
        return needs

    def load_task(self) -> None:
        check_targets(self.config)
        super().load_task()

    def load_model(self) -> None:
        super().load_model()
        modules = list(self._unwrapped_model.modules())
        heads = [m for m in modules if getattr(m, "predicts_noise", False)]
        encoder = any(getattr(m, "encodes_forces", False) for m in modules)
        if self.dens.prob > 0 and not (heads and encoder):
            raise ConfigError(
                "the model has no force encoding or no noise head, so it would ignore optim.dens: "
                f"got {type(self._unwrapped_model).__name__} (model)"
            )
        encodings = [m for m in modules if isinstance(m, ForceEncoding)]
        self._dens_parameters = [p for m in heads + encodings for p in m.parameters()]

    def load_references_and_normalizers(self) -> None:
        """Fit references and normalizers, if asked to, to records that are validated."""
        dataset = getattr(self, "train_dataset", None)
        if dataset is None:
            super().load_references_and_normalizers()
            return
        with replaced(self, train_dataset=checked(dataset, "train", self.config)):
            super().load_references_and_normalizers()
        check_gradient_scales(self._unwrapped_model.modules(), self.normalizers)

    def run_relaxations(self) -> None:
        with safe_lbfgs():
            super().run_relaxations()

    def forward_micro_batch(self, batch) -> dict[str, Tensor]:
        """Compute training outputs; ``noise`` is zeros if no atom is corrupted.

        Those zeros give every parameter a gradient on every rank, as DDP expects, and weight decay
        and momentum treat clean and corrupted steps alike.
        """
        targets = self.output_targets
        if denoising_fields(batch) is not None:
            targets = {**targets, "noise": _NOISE_OUTPUT}
        with replaced(self, output_targets=targets):
            out = super().forward_micro_batch(batch)
        if "noise" not in out:
            zeros = torch.zeros_like(out["forces"])
            out["noise"] = zeros + zero_gradient(self._dens_parameters)
        return out


@registry.register_trainer("dens")
class DeNSTrainer(DeNSMixin, EpochTrainer):
    """EquiformerV2's trainer (schedules in epochs, EMA) with DeNS, registered as ``dens``."""
