"""DeNS settings (``optim.dens``): one schema for validation and for the README's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from dens.noise_levels import NoiseLevels
from dens.settings import ConfigError, parse_settings, setting

UNSCHEDULED = {"early_epochs": None, "clean_start": 0.0, "clean_end": 0.0}
LONGEST_AUTO = 0.5  # the largest fraction that ``clean_end: auto`` becomes where it is not all


def _positive(description: str, unit: str = "Å", expects: str = "a number > 0, or null") -> Any:
    """Define an optional setting > 0."""
    return setting(expects, description, default=None, unit=unit, gt=0)


def _share(description: str) -> Any:
    """Define an optional setting in (0, 1]."""
    return setting("a number in (0, 1], or null", description, default=None, gt=0, le=1)


class DeNSConfig(BaseModel):
    """Settings of denoising non-equilibrium structures (DeNS, arXiv:2403.09549).

    They stand under ``optim.dens`` of a training config. Unknown keys and numbers out of range are
    errors. Symbols in the descriptions are the paper's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    prob: float = setting(
        "a number in [0, 1]",
        "p_DeNS: probability that a structure (or a batch) is corrupted; 0 switches DeNS off",
        ge=0,
        le=1,
    )
    denoising_coefficient: float = setting(
        "a number >= 0", "lambda_DeNS: weight of the denoising loss", ge=0
    )
    denoising_coefficient_end: float | None = setting(
        "a number >= 0, or null",
        "lambda_DeNS decays linearly to this value over training; null keeps it constant",
        default=None,
        ge=0,
    )
    sigma: float | None = _positive(
        "standard deviation of the noise; exclusive with the ladder of the next three keys"
    )
    sigma_low: float | None = _positive("smallest sigma of the ladder")
    sigma_high: float | None = _positive(
        "largest sigma of the ladder, and the scale of the noise targets",
        expects="a number > sigma_low, or null",
    )
    num_sigmas: int | None = setting(
        "an integer from 2 to 1000, or null",
        "rungs of the ladder; each corrupted structure draws one uniformly",
        default=None,
        ge=2,
        le=1000,
    )
    corrupt_ratio: float | None = _share(
        "r_DeNS: probability that an atom of a corrupted structure gets noise; null: all atoms"
    )
    corrupt_fixed_atoms: bool | Literal["only"] = setting(
        "true, false or 'only'",
        "whether fixed atoms may get noise too; only: they alone, so that no atom loses its force "
        "target",
        default=False,
    )
    reduction: Literal["joint", "separate"] = setting(
        "'joint' or 'separate'",
        "joint: force and noise errors share one mean over atoms (OC20, OC22); "
        "separate: each has its own mean (MD17)",
        default="joint",
    )
    granularity: Literal["structure", "batch"] = setting(
        "'structure' or 'batch'",
        "what is corrupted with probability prob: each structure by itself, or whole batches "
        "(as OC20 and OC22 were published)",
        default="structure",
    )
    exclude_md: bool | Literal["if_marked"] = setting(
        "true, false or 'if_marked'",
        "true: never corrupt structures marked `md` (All+MD), and require that mark in the data; "
        "if_marked: the same where the data have the mark",
        default=False,
    )
    min_num_atoms: int | None = setting(
        "an integer >= 1, or null",
        "structures with fewer atoms are never corrupted",
        default=None,
        ge=1,
    )
    strict_max_ratio: float | None = _share(
        "a structure stays clean if corrupt_ratio happens to hit more than this share of its atoms"
    )
    max_force_norm: float | None = _positive(
        "structures with a force above it on any atom are never corrupted", "eV/Å"
    )
    max_mean_force_norm: float | None = _positive(
        "structures whose mean force vector is longer are never corrupted", "eV/Å"
    )
    max_stress_norm: float | None = _positive(
        "structures whose stress has a larger Frobenius norm are never corrupted",
        "as the data's stress",
    )
    early_epochs: int | None = setting(
        "an integer >= 1, or null",
        "corrupt only in the first so many epochs",
        default=None,
        unit="epochs",
        ge=1,
    )
    clean_start: float = setting(
        "a number in [0, 1)",
        "fraction of training at its start in which nothing is corrupted",
        default=0.0,
        ge=0,
        lt=1,
    )
    clean_end: float | Literal["auto"] = setting(
        "a number in [0, 1), or 'auto'",
        "fraction of training at its end in which nothing is corrupted; auto: half of 16 to 35 "
        "epochs, a fifth of 100 and more, and all of fewer than 16, if there are fewer than "
        "100,000 structures",
        default=0.0,
    )

    @model_validator(mode="after")
    def _consistent(self) -> DeNSConfig:
        ladder = {k: getattr(self, k) for k in ("sigma_low", "sigma_high", "num_sigmas")}
        given = [k for k, v in ladder.items() if v is not None]
        if self.sigma is not None and given:
            raise ValueError(
                f"sigma and a ladder exclude each other: got sigma = {self.sigma} and "
                + ", ".join(f"{k} = {ladder[k]}" for k in given)
            )
        if self.sigma is None and len(given) < 3:
            missing = [k for k in ladder if k not in given]
            raise ValueError(
                "give either sigma, or all of sigma_low, sigma_high and num_sigmas: got no sigma"
                + (f", and no {', '.join(missing)}" if given else "")
            )
        if given and self.ladder[0] >= self.ladder[1]:
            raise ValueError(
                f"sigma_high must be > sigma_low, got {self.sigma_high} <= {self.sigma_low}"
            )
        if self.strict_max_ratio is not None and self.corrupt_ratio is None:
            raise ValueError(
                f"strict_max_ratio = {self.strict_max_ratio} needs corrupt_ratio: "
                "without it all atoms are corrupted"
            )
        longest = LONGEST_AUTO if isinstance(self.clean_end, str) else self.clean_end
        if not 0 <= longest < 1:
            raise ValueError(
                f"clean_end must be a number in [0, 1), or 'auto', got {self.clean_end}"
            )
        if self.clean_start + longest >= 1:
            raise ValueError(
                f"clean_start = {self.clean_start} and clean_end = {self.clean_end} leave nothing "
                "corrupted: their sum must be < 1"
            )
        return self

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The possible noise levels in Å, lowest first: one, or a geometric ladder."""
        return self.levels.sigmas

    @property
    def levels(self) -> NoiseLevels:
        """The possible noise levels with their indices, see :meth:`NoiseLevels.geometric`."""
        if self.sigma is not None:
            return NoiseLevels((self.sigma,))
        return NoiseLevels.geometric(*self.ladder)

    @property
    def ladder(self) -> tuple[float, float, int]:
        """The ends of a ladder in Å, and the number of its levels."""
        low, high, number = self.sigma_low, self.sigma_high, self.num_sigmas
        assert low is not None
        assert high is not None
        assert number is not None
        return low, high, number

    @property
    def noise_scale(self) -> float:
        """s_N in Å, the divisor of noise targets: sigma, or sigma_high of a ladder."""
        return self.sigma if self.sigma is not None else self.ladder[1]

    @property
    def required_fields(self) -> dict[str, str]:
        """The fields that structures must have, each with the setting that reads it."""
        readers = {
            "md": ("exclude_md", self.exclude_md is True),
            "stress": ("max_stress_norm", self.max_stress_norm is not None),
        }
        return {field: setting for field, (setting, is_set) in readers.items() if is_set}

    def coefficient_at(self, progress: float) -> float:
        """Return lambda_DeNS after the fraction ``progress`` in [0, 1] of training."""
        if self.denoising_coefficient_end is None:
            return self.denoising_coefficient
        start, end = self.denoising_coefficient, self.denoising_coefficient_end
        return start + (end - start) * min(max(progress, 0.0), 1.0)


def parse_config(settings: Any, where: str = "optim.dens") -> DeNSConfig:
    """Validate DeNS settings.

    >>> parse_config({"prob": 0.5, "denoising_coefficient": 10.0, "sigma": 0.05}).sigmas
    (0.05,)
    >>> parse_config({"prob": 1.5, "denoising_coefficient": 10.0, "sigma": 0.05})
    Traceback (most recent call last):
    dens.settings.ConfigError: prob must be a number in [0, 1], got 1.5 (optim.dens.prob)

    Args:
        settings: a mapping as read from YAML.
        where: its path in the user's config, for messages.

    Raises:
        ConfigError: unknown or missing keys, wrong types, values out of range or contradictions,
            one line for each.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where} must be a mapping of DeNS settings, got {settings!r}")
    return parse_settings(DeNSConfig, settings, where)


def corrupt_all(dens: DeNSConfig, data: Any, sigma: float | None = None) -> DeNSConfig:
    """Change settings so that every structure is corrupted, unless ``dens`` excludes it.

    Args:
        dens: the settings of training.
        data: a structure; exclusions by a field that it lacks are dropped.
        sigma: a noise level, Å; None keeps that of training, or the ladder.
    """
    change: dict[str, Any] = {"prob": 1.0, **UNSCHEDULED}
    if dens.exclude_md:
        change["exclude_md"] = "if_marked"
    if getattr(data, "stress", None) is None:
        change["max_stress_norm"] = None
    if sigma is not None:
        change |= {"sigma": sigma, "sigma_low": None, "sigma_high": None, "num_sigmas": None}
    return dens.model_copy(update=change)
