"""Test the settings of MoreRed training and of relaxation: defaults, derived values, errors."""

import pytest

from dens.noise_levels import NoiseLevels
from dens.relax.config import MoreRedConfig, RelaxSettings, parse_morered
from dens.settings import ConfigError, parse_settings

LADDER = {"schedule": "geometric", "sigma_low": 0.01, "sigma_high": 0.3}
ERRORS = [
    ({"schedule": "cosine"}, "schedule must be 'polynomial' or 'geometric', got 'cosine'"),
    ({"max_levels": 3}, "unknown key max_levels = 3 (optim.morered.max_levels): did you mean"),
    ({"num_levels": 300, "max_level": 400}, "max_level must be <= num_levels, got 400 > 300"),
    ({"num_levels": "many"}, "num_levels must be an integer from 2 to 10000, got 'many'"),
    ({"sigma_low": 0.1}, "sigma_low = 0.1 would be ignored: schedule is polynomial"),
    ({"schedule": "geometric"}, "schedule geometric needs sigma_low and sigma_high"),
    ({**LADDER, "sigma_low": 0.3}, "sigma_high must be > sigma_low, got 0.3 <= 0.3"),
    ({"pair_share": 1.5}, "pair_share must be a number in [0, 1], got 1.5"),
    ({"max_level": 0}, "max_level must be an integer >= 1, got 0"),
]
RELAX_ERRORS = [
    ({"sampler": "itp", "stop_level": 3}, "stop_level = 3 would be ignored: sampler itp"),
    ({"sampler": "itp", "patience": 3}, "patience = 3 would be ignored: sampler itp"),
    ({"sampler": "jt", "damping": 0.2}, "damping = 0.2 would be ignored: sampler is jt"),
    ({"damping": 1.0}, "damping must be a number in [0, 1), or null, got 1.0 (relax.damping)"),
    ({"max_calls": 0}, "max_calls must be an integer >= 1, or null, got 0 (relax.max_calls)"),
]


@pytest.mark.parametrize(("settings", "message"), ERRORS)
def test_errors(settings, message):
    with pytest.raises(ConfigError) as error:
        parse_morered(settings)
    assert message in str(error.value)
    assert "optim.morered" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("settings", "message"), RELAX_ERRORS)
def test_relax_errors(settings, message):
    with pytest.raises(ConfigError) as error:
        parse_settings(RelaxSettings, settings, "relax")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_mapping():
    with pytest.raises(ConfigError, match=r"optim\.morered must be a mapping of MoreRed settings"):
        parse_morered([1])


@pytest.mark.parametrize(
    ("settings", "number", "drawn"),
    [
        ({}, 1000, 400),
        ({"num_levels": 300}, 300, 120),
        ({"num_levels": 2}, 2, 1),
        ({"max_level": 1000}, 1000, 1000),
        ({**LADDER, "num_levels": 30}, 30, 30),
        ({**LADDER, "num_levels": 30, "max_level": 20}, 30, 20),
    ],
)
def test_levels(settings, number, drawn):
    config = parse_morered(settings)
    assert (len(config.levels), config.max_level) == (number, drawn)
    if "schedule" not in settings:
        assert config.levels == NoiseLevels.polynomial(number)
    else:
        assert config.levels == NoiseLevels.geometric(0.01, 0.3, number)
    assert MoreRedConfig(**config.model_dump()) == config


def test_stop_level_is_the_highest_that_counts_as_no_noise():
    auto = RelaxSettings()
    assert auto.lowest_level(NoiseLevels.polynomial()) == 15
    ladder = NoiseLevels.geometric(0.01, 0.3, 30)
    at = auto.lowest_level(ladder)
    assert ladder.sigmas[at] < 0.0235 < ladder.sigmas[at + 1]
    assert auto.lowest_level(NoiseLevels((0.1,))) == 0
    assert RelaxSettings(stop_level=0).lowest_level(ladder) == 0
    with pytest.raises(ConfigError, match="stop_level must be < 30, the number of noise levels"):
        RelaxSettings(stop_level=30).lowest_level(ladder)


def test_itp_has_no_limit_of_calls_of_its_own():
    limits = [RelaxSettings(sampler=name).call_limit for name in ("direct", "jt", "as", "itp")]
    assert limits == [60, 60, 60, None]
    assert RelaxSettings(sampler="itp", max_calls=7).call_limit == 7


@pytest.mark.parametrize(("sampler", "calls"), [("direct", 2), ("jt", 10), ("as", 10)])
def test_patience(sampler, calls):
    assert RelaxSettings(sampler=sampler).calls_without_progress == calls
    assert RelaxSettings(sampler=sampler, patience=5).calls_without_progress == 5
