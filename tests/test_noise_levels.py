"""Test noise levels: the check values of the published schedule, indices and times."""

import math

import pytest
import torch

from dens.noise_levels import NoiseLevels

# t: sigma_t; share of the noise that a step removes, kick of a step, Å
PUBLISHED = {
    0: (0.00346, None, None),
    10: (0.0159, 0.002646, 0.005917),
    50: (0.0723, 0.002814, 0.013987),
    100: (0.1440, 0.002879, 0.020153),
    150: (0.2173, 0.002967, 0.025220),
    200: (0.2932, 0.003093, 0.029958),
    300: (0.4574, 0.003491, 0.039805),
    500: (0.8846, 0.005375, 0.068746),
    999: (316.163, 90.1771, 142.754),
}
ABAR = {0: 0.999988, 10: 0.999748, 50: 0.994795, 100: 0.979692, 150: 0.954909}
ABAR |= {200: 0.920822, 300: 0.827000, 500: 0.560998, 999: 1e-5}


def published_abar(num_levels: int = 1000) -> torch.Tensor:
    """The published schedule as a plain product: (T,), float64."""
    share = torch.arange(num_levels + 1, dtype=torch.float64) / num_levels
    level = (1 - share**2) ** 2
    return (level[1:] / level[:-1]).clamp(1e-3, 1).cumprod(0) * (1 - 2e-5) + 1e-5


@pytest.mark.parametrize("t", PUBLISHED)
def test_polynomial_levels(t):
    levels, level = NoiseLevels.polynomial(), torch.tensor(t)
    sigma, below = levels.sigma(level).item(), levels.sigma_below(level).item()
    given, factor, kick = PUBLISHED[t]
    assert sigma == pytest.approx(given, abs=10 ** (math.floor(math.log10(given)) - 2))
    assert 1 / (1 + sigma**2) == pytest.approx(ABAR[t], abs=1e-6)
    assert sigma == pytest.approx((1 / published_abar()[t].item() - 1) ** 0.5, rel=1e-9)
    if factor is not None:
        removed = (sigma**2 - below**2) / sigma
        assert removed == pytest.approx(factor, rel=2e-6, abs=1e-6)
        assert below * (sigma**2 - below**2) ** 0.5 / sigma == pytest.approx(
            kick, rel=5e-6, abs=1e-6
        )


def test_the_lowest_level_has_none_below():
    assert NoiseLevels.polynomial().sigma_below(torch.tensor([0, 1])).tolist() == [
        0,
        NoiseLevels.polynomial().sigmas[0],
    ]


def test_times_and_indices():
    levels = NoiseLevels.polynomial()
    every = torch.arange(1000)
    assert torch.equal(levels.index_of(levels.tau(every)), every)
    assert torch.equal(levels.nearest(levels.sigma(every)), every)
    assert levels.index_of(torch.tensor([-3.0, 7.0])).tolist() == [0, 999]
    given = torch.tensor([0.05, 0.1, 0.15, 0.2, 0.3, 0.5])
    assert levels.nearest(given).tolist() == [34, 69, 104, 138, 204, 324]
    assert levels.nearest(1e6).item() == 999
    assert levels.nearest(0.0).item() == 0


def test_ladder_and_single_level():
    ladder = NoiseLevels.geometric(0.01, 0.16, 5)
    assert ladder.sigmas == pytest.approx((0.01, 0.02, 0.04, 0.08, 0.16))
    for low, high, n in ((0.01, 0.3, 30), (0.02, 0.2, 3), (1e-3, 7.0, 1000)):
        ends = math.log(low), math.log(high)
        exact = [math.exp(ends[0] + k * (ends[1] - ends[0]) / (n - 1)) for k in range(n)]
        assert NoiseLevels.geometric(low, high, n).sigmas == tuple(exact)  # bit for bit
    single = NoiseLevels((0.1,))
    assert single.tau(torch.tensor([0])).tolist() == [0.0]
    assert single.nearest(torch.tensor([5.0])).tolist() == [0]


def test_levels_out_of_order():
    for wrong in ((), (0.2, 0.1), (0.0, 0.1), (0.1, math.inf)):
        with pytest.raises(ValueError, match="expected noise levels > 0 in Å, lowest first"):
            NoiseLevels(wrong)
