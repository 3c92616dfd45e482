"""Settings of MoreRed training (``optim.morered``) and of relaxation by denoising."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator

from dens.noise_levels import NoiseLevels
from dens.settings import ConfigError, parse_settings, setting


class Defaults(NamedTuple):
    """Settings that a model has defaults of its own for; these are MoreRed's."""

    damping: float = 0.5
    relaxed: float = 0.0235  # Å | noise that counts as none: 15 of the 1000 polynomial levels


DEFAULTS = Defaults()

_PATIENCE = {"direct": 2, "jt": 10, "as": 10}  # calls
_MAX_CALLS = 60
_NUM_LEVELS = 1000


class MoreRedConfig(BaseModel):
    """Settings of training on relaxed structures with noise (MoreRed, arXiv:2404.10935).

    They stand under ``optim.morered`` of a training config. Unknown keys and numbers out of range
    are errors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    schedule: Literal["polynomial", "geometric"] = setting(
        "'polynomial' or 'geometric'",
        "the noise levels: polynomial as published, or a geometric ladder from sigma_low to "
        "sigma_high",
        default="polynomial",
    )
    num_levels: int = setting(
        "an integer from 2 to 10000",
        "T: number of noise levels, which the diffusion time counts",
        default=_NUM_LEVELS,
        ge=2,
        le=10000,
    )
    max_level: int = setting(
        "an integer >= 1",
        "number of levels that training draws from, the lowest ones (published: all 1000); unless "
        "given, 0.4 num_levels of polynomial and all of geometric",
        default=400,
        ge=1,
    )
    sigma_low: float | None = setting(
        "a number > 0, or null", "smallest sigma, geometric only", default=None, unit="Å", gt=0
    )
    sigma_high: float | None = setting(
        "a number > sigma_low, or null",
        "largest sigma, geometric only",
        default=None,
        unit="Å",
        gt=0,
    )
    pair_share: float = setting(
        "a number in [0, 1]",
        "share of the structures with a field pos_start, an unrelaxed structure, whose "
        "displacement stands in for the noise",
        default=0.0,
        ge=0,
        le=1,
    )

    @model_validator(mode="before")
    @classmethod
    def _default_max_level(cls, settings: Any) -> Any:
        number = settings.get("num_levels", _NUM_LEVELS)
        if "max_level" in settings or not isinstance(number, int):
            return settings
        is_ladder = settings.get("schedule") == "geometric"
        return {**settings, "max_level": number if is_ladder else max(1, number * 2 // 5)}

    @model_validator(mode="after")
    def _consistent(self) -> MoreRedConfig:
        ends = {"sigma_low": self.sigma_low, "sigma_high": self.sigma_high}
        if self.schedule == "polynomial":
            if given := [f"{k} = {v}" for k, v in ends.items() if v is not None]:
                raise ValueError(
                    f"{' and '.join(given)} would be ignored: schedule is polynomial, not geometric"
                )
        elif missing := [k for k, v in ends.items() if v is None]:
            raise ValueError(f"schedule geometric needs {' and '.join(missing)}")
        elif self._ends[0] >= self._ends[1]:
            raise ValueError(
                f"sigma_high must be > sigma_low, got {self.sigma_high} <= {self.sigma_low}"
            )
        if self.max_level > self.num_levels:
            raise ValueError(
                f"max_level must be <= num_levels, got {self.max_level} > {self.num_levels}"
            )
        return self

    @property
    def levels(self) -> NoiseLevels:
        """All levels, of which training draws the lowest ``max_level``."""
        return self._all_levels

    @cached_property
    def _all_levels(self) -> NoiseLevels:
        if self.schedule == "polynomial":
            return NoiseLevels.polynomial(self.num_levels)
        return NoiseLevels.geometric(*self._ends, self.num_levels)

    @property
    def _ends(self) -> tuple[float, float]:
        """The lowest and the highest level of a geometric schedule, Å."""
        assert self.sigma_low is not None
        assert self.sigma_high is not None
        return self.sigma_low, self.sigma_high


class RelaxSettings(BaseModel):
    """Settings of relaxation by denoising: how a structure moves, and when it stops.

    Source: MoreRed (arXiv:2404.10935) for jt, as and itp; direct is ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    sampler: Literal["direct", "jt", "as", "itp"] = setting(
        "'direct', 'jt', 'as' or 'itp'",
        "direct: remove a share of the predicted noise, no random numbers; jt: reverse diffusion "
        "whose level is predicted anew at each call; as: the same with a network of its own for "
        "the level; itp: the level is predicted once and counted down",
        default="direct",
    )
    max_calls: int | None = setting(
        "an integer >= 1, or null",
        f"a structure stops unconverged after so many calls of the network; null: {_MAX_CALLS}, "
        "but no limit for itp, which takes as many as the level that it finds",
        default=None,
        unit="calls",
        ge=1,
    )
    stop_level: int | None = setting(
        "an integer >= 0, or null",
        "a structure whose noise is at most of this level has converged; null: the highest level "
        f"of at most {DEFAULTS.relaxed} Å, 15 of 1000 polynomial ones (published: 0); of DeNS "
        "0.008 Å",
        default=None,
        ge=0,
    )
    patience: int | None = setting(
        "an integer >= 1, or null",
        "a structure whose level has reached no new low for so many calls has converged; null: 2 "
        "for direct, 10 for jt and as",
        default=None,
        unit="calls",
        ge=1,
    )
    damping: float | None = setting(
        "a number in [0, 1), or null",
        "share of the predicted noise that a step of direct leaves; null: "
        f"{DEFAULTS.damping} for MoreRed, 0 for DeNS",
        default=None,
        ge=0,
        lt=1,
    )
    start_level: float | None = setting(
        "a number > 0, or null",
        "noise added before a relaxation, which can free structures that are near a minimum but "
        "not in it; null: none",
        default=None,
        unit="Å",
        gt=0,
    )
    batch_atoms: int = setting(
        "an integer >= 1",
        "atoms of a batch; a larger structure is a batch by itself",
        default=4000,
        ge=1,
    )

    @model_validator(mode="after")
    def _consistent(self) -> RelaxSettings:
        if self.sampler == "itp":
            for name in ("stop_level", "patience"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} = {getattr(self, name)} would be ignored: sampler itp counts its "
                        "level down to 0"
                    )
        if self.sampler != "direct" and self.damping is not None:
            raise ValueError(
                f"damping = {self.damping} would be ignored: sampler is {self.sampler}, not direct"
            )
        return self

    @property
    def call_limit(self) -> int | None:
        """``max_calls``, or the sampler's own; None for itp, which ends without it."""
        own_limit = None if self.sampler == "itp" else _MAX_CALLS
        return own_limit if self.max_calls is None else self.max_calls

    @property
    def calls_without_progress(self) -> int | None:
        """``patience``, or the sampler's own; None for itp, which does not need it."""
        return _PATIENCE.get(self.sampler) if self.patience is None else self.patience

    def lowest_level(self, levels: NoiseLevels, defaults: Defaults = DEFAULTS) -> int:
        """Return ``stop_level``, or the highest of ``levels`` that counts as no noise, at least 0.

        Args:
            levels: those of the model.
            defaults: the model's.

        Raises:
            ConfigError: ``stop_level`` is no index of ``levels``.
        """
        if self.stop_level is None:
            return max(0, sum(sigma <= defaults.relaxed for sigma in levels.sigmas) - 1)
        if self.stop_level >= len(levels):
            raise ConfigError(
                f"stop_level must be < {len(levels)}, the number of noise levels of the model, "
                f"got {self.stop_level}"
            )
        return self.stop_level


def parse_morered(settings: Any, where: str = "optim.morered") -> MoreRedConfig:
    """Validate settings of MoreRed training.

    Args:
        settings: a mapping as read from YAML.
        where: its path in the user's config, for messages.

    Raises:
        ConfigError: unknown keys, wrong types, values out of range or contradictions, one line for
            each.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where} must be a mapping of MoreRed settings, got {settings!r}")
    return parse_settings(MoreRedConfig, settings, where)
