"""Noise levels: the standard deviations that noise may have, their indices and diffusion times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

_FLOOR = 1e-5  # s of the polynomial schedule: keeps abar within [s, 1 - s]
_SMALLEST_RATIO = 1e-3  # of two successive abar of the polynomial schedule


@dataclass(frozen=True)
class NoiseLevels:
    """A sequence of noise levels, lowest first; level t has the standard deviation ``sigmas[t]``.

    ``t`` is the index of a level, 0 to T - 1, and tau = t / (T - 1) in [0, 1] its diffusion time.

    >>> levels = NoiseLevels.geometric(0.01, 0.16, 5)
    >>> [round(sigma, 3) for sigma in levels.sigmas]
    [0.01, 0.02, 0.04, 0.08, 0.16]
    >>> int(levels.nearest(0.05))
    2
    """

    sigmas: tuple[float, ...]  # (T,) | Å

    def __post_init__(self) -> None:
        in_order = all(a <= b for a, b in pairwise(self.sigmas))
        if not self.sigmas or not in_order or not 0 < self.sigmas[0] <= self.sigmas[-1] < math.inf:
            raise ValueError(
                f"expected noise levels > 0 in Å, lowest first, got {len(self.sigmas)}: "
                f"{', '.join(f'{sigma:g}' for sigma in self.sigmas[:10])}"
            )

    @classmethod
    def polynomial(cls, num_levels: int = 1000) -> NoiseLevels:
        r"""Make the levels of the polynomial schedule of MoreRed (arXiv:2404.10935), in Å.

        .. math:: \bar\alpha_t = (1 - 2s) \prod_{k=1}^{t+1} r_k + s,\quad
            r_k = \mathrm{clip}(a_k / a_{k-1}, 10^{-3}, 1),\quad a_k = (1 - (k/T)^2)^2,\quad
            \sigma_t = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}

        with s = 1e-5. The published process shrinks structures by the factor
        :math:`\sqrt{\bar\alpha_t}`; divided by it, it adds noise of this sigma to structures that
        keep their size.

        Args:
            num_levels: T.
        """
        level = [(1 - (k / num_levels) ** 2) ** 2 for k in range(num_levels + 1)]
        product, sigmas = 1.0, []
        for before, after in pairwise(level):
            product *= min(max(after / before, _SMALLEST_RATIO), 1.0)
            abar = (1 - 2 * _FLOOR) * product + _FLOOR
            sigmas.append(math.sqrt((1 - abar) / abar))
        return cls(tuple(sigmas))

    @classmethod
    def geometric(cls, low: float, high: float, num_levels: int) -> NoiseLevels:
        r"""Make a geometric ladder of levels.

        .. math:: \sigma_k = \exp(\ln\sigma_{low} + k\,(\ln\sigma_{high}-\ln\sigma_{low})/(T-1))

        Args:
            low, high: lowest and highest sigma, Å.
            num_levels: T, at least 2.
        """
        low, high, last = math.log(low), math.log(high), num_levels - 1
        return cls(tuple(math.exp(low + k * (high - low) / last) for k in range(last + 1)))

    def __len__(self) -> int:
        return len(self.sigmas)

    def tau(self, level: Tensor) -> Tensor:
        """Return the diffusion time t / (T - 1) of levels, in PyTorch's default precision."""
        return level / max(len(self) - 1, 1)

    def index_of(self, tau: Tensor) -> Tensor:
        """Return the level nearest to a diffusion time, which is clipped to [0, 1] first: long."""
        return (tau.clamp(0, 1) * (len(self) - 1)).round().long()

    def nearest(self, sigma: Tensor | float) -> Tensor:
        """Return the level whose sigma is nearest to a standard deviation in Å, long."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        levels = self.tensor(torch.float64, sigma.device)
        return torch.bucketize(sigma, (levels[1:] + levels[:-1]) / 2)

    def sigma(self, level: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return sigma of levels, Å."""
        return self.tensor(dtype, level.device)[level]

    def sigma_below(self, level: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return sigma of the next lower levels, Å; 0 below the lowest."""
        return torch.where(level > 0, self.sigma((level - 1).clamp(min=0), dtype), 0)

    def tensor(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return all sigmas as a tensor that must not be modified: (T,), Å."""
        return _as_tensor(self.sigmas, dtype, torch.device(device))


@lru_cache(maxsize=64)
def _as_tensor(sigmas: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(sigmas, dtype=dtype, device=device)
