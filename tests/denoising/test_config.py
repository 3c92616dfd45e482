import pytest

from dens.denoising.config import DeNSConfig, parse_config
from dens.settings import ConfigError, options_table

GOOD = {"prob": 0.5, "denoising_coefficient": 10, "sigma": 0.1}
LADDER = {"sigma_low": 0.01, "sigma_high": 0.16, "num_sigmas": 5}


def without(*keys, **more):
    return {**{k: v for k, v in GOOD.items() if k not in keys}, **more}


BAD = [
    (3, "optim.dens must be a mapping of DeNS settings, got 3"),
    (without("prob"), "prob is missing, it must be a number in [0, 1] (optim.dens.prob)"),
    (without(prob=1.5), "prob must be a number in [0, 1], got 1.5 (optim.dens.prob)"),
    (without(prob=True), "prob must be a number in [0, 1], got True (optim.dens.prob)"),
    (without(prob=float("nan")), "prob must be a number in [0, 1], got nan"),
    (without(sigma="1e-1"), "got '1e-1', a string; YAML reads 1e-1 as one, write 1.0e-1"),
    (without(sigma=0), "sigma must be a number > 0, or null, got 0 (optim.dens.sigma)"),
    (without(sigma=float("inf")), "sigma must be a number > 0, or null, got inf"),
    (without(corrupt_ratio=0), "corrupt_ratio must be a number in (0, 1], or null, got 0"),
    (without(corrupt_ratio=1.5), "got 1.5 (optim.dens.corrupt_ratio)"),
    (without(min_num_atoms=2.5), "min_num_atoms must be an integer >= 1, or null, got 2.5"),
    (without(reduction="mean"), "reduction must be 'joint' or 'separate', got 'mean'"),
    (without(granularity="atom"), "granularity must be 'structure' or 'batch', got 'atom'"),
    (without(exclude_md="yes"), "exclude_md must be true, false or 'if_marked', got 'yes'"),
    (without(corrupt_fixed_atoms=1), "corrupt_fixed_atoms must be true, false or 'only', got 1"),
    (without(denoising_coefficient=-1), "denoising_coefficient must be a number >= 0, got -1"),
    (without(sigm=0.1), "unknown key sigm = 0.1 (optim.dens.sigm): did you mean sigma?"),
    (without(qqq=1), "unknown key qqq = 1 (optim.dens.qqq): the keys are prob, "),
    (without("sigma"), "give either sigma, or all of sigma_low, sigma_high and num_sigmas"),
    (without(**LADDER), "sigma and a ladder exclude each other: got sigma = 0.1 and sigma_low"),
    (without("sigma", sigma_low=0.1), "got no sigma, and no sigma_high, num_sigmas (optim.dens)"),
    (
        without("sigma", sigma_low=0.2, sigma_high=0.1, num_sigmas=3),
        "sigma_high must be > sigma_low, got 0.1 <= 0.2 (optim.dens)",
    ),
    (without(strict_max_ratio=0.5), "strict_max_ratio = 0.5 needs corrupt_ratio"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError) as error:
        parse_config(settings)
    assert message in str(error.value)


def test_every_problem_has_its_line():
    with pytest.raises(ConfigError) as error:
        parse_config({"prob": 2, "sigma": -1, "oops": 0})
    text = str(error.value)
    assert len(text.splitlines()) == 4
    for name in ("prob", "sigma", "oops", "denoising_coefficient"):
        assert f"(optim.dens.{name})" in text


def test_settings_are_frozen():
    config = parse_config(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        config.sigma = 1.0


def test_ladder_is_geometric_and_scaled_by_its_top():
    config = parse_config(without("sigma", **LADDER))
    assert config.sigmas == pytest.approx((0.01, 0.02, 0.04, 0.08, 0.16))
    assert config.noise_scale == 0.16
    assert parse_config(GOOD).sigmas == (0.1,)
    assert parse_config(GOOD).noise_scale == 0.1


def test_coefficient_decays_linearly():
    config = parse_config(without(denoising_coefficient=5, denoising_coefficient_end=1))
    assert [config.coefficient_at(p) for p in (0, 0.25, 1, 2)] == [5, 4, 1, 1]
    assert parse_config(GOOD).coefficient_at(0.7) == 10


def test_every_field_is_documented():
    for name, field in DeNSConfig.model_fields.items():
        assert field.description, name
        assert field.json_schema_extra["expects"], name
    assert options_table(DeNSConfig).count("\n| `") == len(DeNSConfig.model_fields)
