r"""Samplers of relaxation by denoising: steps of positions, levels to ask for, when to stop.

Notation: s_t is sigma of level t in Å, s_{-1} = 0, and :math:`\hat\epsilon` the noise that the
denoiser finds, in units of s_t. Steps divide the published variance-preserving process by
:math:`\sqrt{\bar\alpha}`, so that structures keep their size (arXiv:2404.10935).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dens.noise_levels import NoiseLevels
from dens.relax.config import DEFAULTS, Defaults, RelaxSettings

# Why a structure stopped, and the sentence for users; all but the last two are convergence.
Reason = Literal["relaxed", "plateau", "countdown", "max_calls", "not_finite"]
REASONS: dict[Reason, str] = {
    "relaxed": "its noise is of the stop level or below",
    "plateau": "its noise level falls no further",
    "countdown": "its noise level was counted down to 0",
    "max_calls": "not converged within the limit of calls",
    "not_finite": "not converged, the model's output is not finite",
}
CONVERGED: frozenset[Reason] = frozenset({"relaxed", "plateau", "countdown"})


def estimate(
    pos: Tensor, noise: Tensor, level: Tensor, batch: Tensor, levels: NoiseLevels
) -> Tensor:
    r"""Remove the noise that was found: the estimate of the relaxed structure.

    .. math:: \hat p_0 = p - s_t \hat\epsilon

    Args:
        pos: (n_atoms, 3), Å.
        noise: (n_atoms, 3), in units of s_t.
        level: (n_structures,), t.
        batch: (n_atoms,), index of the structure of each atom.
        levels: the noise levels.
    """
    return pos - levels.sigma(level, pos.dtype)[batch][:, None] * noise


def direct_step(
    pos: Tensor,
    noise: Tensor,
    level: Tensor,
    batch: Tensor,
    levels: NoiseLevels,
    damping: float,
) -> Tensor:
    r"""Remove a share of the noise that was found; arguments as of :func:`estimate`.

    .. math:: p \leftarrow p - (1 - g)\, s_t \hat\epsilon

    Args:
        damping: g in [0, 1).
    """
    return estimate(pos, (1 - damping) * noise, level, batch, levels)


def posterior_step(
    pos: Tensor,
    noise: Tensor,
    level: Tensor,
    batch: Tensor,
    levels: NoiseLevels,
    unit_noise: Tensor,
) -> Tensor:
    r"""Draw a structure of level t - 1 from one of level t; arguments as of :func:`estimate`.

    .. math:: p \leftarrow p - \frac{s_t^2 - s_{t-1}^2}{s_t} \hat\epsilon
        + \frac{s_{t-1}\sqrt{s_t^2 - s_{t-1}^2}}{s_t} z

    Multiplied with :math:`\sqrt{\bar\alpha_{t-1}}` it is the published step. At t = 0 it is
    :func:`estimate`.

    Args:
        unit_noise: (n_atoms, 3), z, standard normal, centred as the noise is.
    """
    sigma, below = levels.sigma(level, pos.dtype), levels.sigma_below(level, pos.dtype)
    removed = (sigma - below) * (sigma + below)
    drift, kick = removed / sigma, below * removed.sqrt() / sigma
    return pos - drift[batch][:, None] * noise + kick[batch][:, None] * unit_noise


@dataclass(frozen=True)
class Sampler:
    """A way to relax structures: the levels that it tells the denoiser, and its steps.

    ``direct``, ``jt`` and ``as`` take the level anew from each call; ``itp`` takes that of the
    first call and counts down.

    Attributes:
        settings: the settings of the relaxation.
        levels: the noise levels of the denoiser.
        defaults: the denoiser's, for settings that are not given.
    """

    settings: RelaxSettings
    levels: NoiseLevels
    defaults: Defaults = DEFAULTS

    @property
    def damping(self) -> float:
        """Share of the predicted noise that a step of direct leaves."""
        given = self.settings.damping
        return self.defaults.damping if given is None else given

    @property
    def is_random(self) -> bool:
        """Whether steps need random numbers."""
        return self.settings.sampler != "direct"

    @property
    def counts_down(self) -> bool:
        """Whether the level is told from the second call on, one lower at each call."""
        return self.settings.sampler == "itp"

    def step(
        self, pos: Tensor, noise: Tensor, level: Tensor, batch: Tensor, unit_noise: Tensor | None
    ) -> Tensor:
        """Return the next positions, Å; arguments as of :func:`posterior_step`."""
        if unit_noise is None:
            return direct_step(pos, noise, level, batch, self.levels, self.damping)
        return posterior_step(pos, noise, level, batch, self.levels, unit_noise)


class StopRule:
    """The decision of when one structure stops, from the levels of its calls so far."""

    def __init__(self, sampler: Sampler) -> None:
        settings = sampler.settings
        self.counts_down = sampler.counts_down
        lowest = settings.lowest_level(sampler.levels, sampler.defaults)
        self.stop_level = 0 if self.counts_down else lowest
        self.patience = settings.calls_without_progress
        self.limit = settings.call_limit

    def __call__(self, found: list[int]) -> Reason | None:
        """Tell why a structure stops after calls that found these levels; None: it goes on.

        A structure stops at ``stop_level``; or once the lowest level of its calls is ``patience``
        calls old; or after the largest number of calls.
        """
        if found[-1] <= self.stop_level:
            return "countdown" if self.counts_down else "relaxed"
        if self.patience is not None and len(found) - 1 - found.index(min(found)) >= self.patience:
            return "plateau"
        if self.limit is not None and len(found) >= self.limit:
            return "max_calls"
        return None


def draw_unit_noise(natoms: list[int], generators: list[torch.Generator]) -> Tensor:
    """Draw standard normal numbers, those of a structure from its own generator: (n_atoms, 3)."""
    parts = zip(natoms, generators, strict=True)
    return torch.cat([torch.randn(n, 3, generator=g, dtype=torch.float64) for n, g in parts])
