"""Test steps and stop rules: against the published step, exact scores and hand-made levels."""

import pytest
import torch

from dens.noise_levels import NoiseLevels
from dens.relax.config import RelaxSettings
from dens.relax.samplers import (
    CONVERGED,
    REASONS,
    Sampler,
    StopRule,
    direct_step,
    estimate,
    posterior_step,
)

LEVELS = NoiseLevels.polynomial()


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_step_is_the_published_one():
    """Scaled by sqrt(abar), for every t; x_t = sqrt(abar_t) p_t of arXiv:2404.10935."""
    share = torch.arange(1001, dtype=torch.float64) / 1000
    a = (1 - share**2) ** 2
    abar = (a[1:] / a[:-1]).clamp(1e-3, 1).cumprod(0) * (1 - 2e-5) + 1e-5
    t = torch.arange(1, 1000)
    pos, eps, z = (normal(999, 3, seed=i) for i in range(3))
    alpha, bbar, bbar_before = abar[t] / abar[t - 1], 1 - abar[t], 1 - abar[t - 1]
    beta = 1 - alpha
    x = abar[t].sqrt()[:, None] * pos
    mean = (x - (beta / bbar.sqrt())[:, None] * eps) / alpha.sqrt()[:, None]
    published = mean + (beta * bbar_before / bbar).sqrt()[:, None] * z
    ours = posterior_step(pos, eps, t, torch.arange(999), LEVELS, z)
    expected = published / abar[t - 1].sqrt()[:, None]
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_the_last_step_is_the_estimate():
    pos, eps, z = (normal(4, 3, seed=i) for i in range(3))
    level, batch = torch.zeros(4, dtype=torch.long), torch.arange(4)
    last = posterior_step(pos, eps, level, batch, LEVELS, z)
    assert torch.equal(last, estimate(pos, eps, level, batch, LEVELS))


def test_direct_leaves_a_share():
    pos, eps = normal(4, 3), normal(4, 3, seed=1)
    level, batch = torch.tensor([300]), torch.zeros(4, dtype=torch.long)
    moved = direct_step(pos, eps, level, batch, LEVELS, 0.25)
    torch.testing.assert_close(pos - moved, 0.75 * LEVELS.sigmas[300] * eps)


def test_reverse_diffusion_ends_in_the_distribution_of_the_data():
    """Data of width w: with the exact score, drift and kicks together give back w."""
    width, first = 0.2, 300
    pos = (LEVELS.sigmas[first] ** 2 + width**2) ** 0.5 * normal(20000, 3)
    batch = torch.zeros(len(pos), dtype=torch.long)
    for t in range(first, -1, -1):
        sigma = LEVELS.sigmas[t]
        score = sigma * pos / (sigma**2 + width**2)
        pos = posterior_step(
            pos, score, torch.tensor([t]), batch, LEVELS, normal(*pos.shape, seed=1 + t)
        )
    assert pos.std().item() == pytest.approx(width, rel=0.03)
    assert pos.mean(0).abs().max() < 0.01


# sampler, settings, levels of the calls, how it ends after which call
ENDS = [
    ("direct", {}, [40, 15], "relaxed"),
    ("direct", {"stop_level": 0}, [40, 15, 1, 0], "relaxed"),
    ("direct", {}, [40, 41, 40], "plateau"),
    ("direct", {}, [40, 30, 31, 29, 29, 29], "plateau"),
    ("direct", {"patience": 3}, [40, 41, 40, 42], "plateau"),
    ("direct", {"patience": 9, "max_calls": 4}, [40, 41, 42, 43], "max_calls"),
    ("direct", {"max_calls": 2}, [40, 12], "relaxed"),
    ("jt", {}, [50, *range(60, 70)], "plateau"),
    ("as", {"max_calls": 3}, [90, 80, 70], "max_calls"),
    ("itp", {}, [3, 2, 1, 0], "countdown"),
    ("itp", {"max_calls": 2}, [3, 2], "max_calls"),
]


@pytest.mark.parametrize(("name", "settings", "found", "reason"), ENDS)
def test_stop_reasons(name, settings, found, reason):
    rule = StopRule(Sampler(RelaxSettings(sampler=name, **settings), LEVELS))
    for calls in range(1, len(found)):
        assert rule(found[:calls]) is None
    assert rule(found) == reason
    assert set(REASONS) > CONVERGED
    assert (reason in CONVERGED) == (reason != "max_calls")
