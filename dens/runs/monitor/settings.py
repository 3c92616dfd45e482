"""Settings of monitoring, ``optim.watch`` or ``watch`` of a unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dens.objective import Objective
from dens.settings import ConfigError, parse_settings, setting

# The noise head and the corruption make a pass more expensive than one of the evaluation.
_COST_OF_PASS = 1.2
_SHARE_OF_EVALUATION = 0.05


class MonitorSettings(BaseModel):
    """Settings of the measurements during training, and how often they are made."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    denoising_structures: int | None = setting(
        "an integer >= 0, or null",
        "structures of the validation set on which denoising is measured at each evaluation; "
        "null: as many as cost 5 % of the evaluation",
        default=None,
        ge=0,
    )
    denoising_sigmas: list[Annotated[float, Field(gt=0)]] | None = setting(
        "a list of numbers > 0, or null",
        "their noise levels; null: half, once and twice sigma, or the ends and the middle of the "
        "ladder",
        default=None,
        unit="Å",
        min_length=1,
    )
    figures_every: int = setting(
        "an integer >= 0",
        "evaluations from one set of figures to the next, the last one having them in any case; "
        "0: none",
        default=10,
        ge=0,
    )
    gradients_every: int = setting(
        "an integer >= 0",
        "steps from one measurement of the loss terms' shares of the gradient to the next; 0: none",
        default=200,
        ge=0,
        unit="steps",
    )

    def sigmas(self, objective: Objective) -> Sequence[float]:
        """Return the noise levels of the denoising validation, Å, lowest first."""
        if self.denoising_sigmas is not None:
            return sorted(set(self.denoising_sigmas))
        return objective.sigmas

    def structures(self, n_validation: int, n_probes: int) -> int:
        """Return how many of ``n_validation`` structures to denoise, each ``n_probes`` times."""
        if self.denoising_structures is not None:
            return min(self.denoising_structures, n_validation)
        passes = n_probes * _COST_OF_PASS
        # one fewer, since a small batch costs more per structure
        fitting = int(_SHARE_OF_EVALUATION * n_validation / passes) - 1
        return max(min(1, n_validation), fitting)


def parse_monitor(section: Mapping[str, Any], where: str = "optim") -> MonitorSettings:
    """Validate ``watch`` in a section of a config; without it the defaults hold.

    Args:
        where: path of the section in the config.

    Raises:
        ConfigError: a key is unknown or a value out of range.
    """
    settings, where = section.get("watch") or {}, f"{where}.watch"
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where} must be a mapping of settings, got {settings!r}")
    return parse_settings(MonitorSettings, settings, where)
