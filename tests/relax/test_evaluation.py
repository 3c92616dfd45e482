"""Test the evaluation of relaxations: draws of noise, measures, figures of merit."""

import pytest
import torch
from helpers.denoisers import ExactDenoiser, SpringDenoiser, chain
from scipy.stats import spearmanr

from dens.relax.config import RelaxSettings
from dens.relax.evaluation import (
    Measured,
    levels_found,
    measure,
    noisy_starts,
    rank_correlation,
    rmsd,
)
from dens.relax.loop import relax_structures
from dens.relax.structures import Structure

SIZES = (5, 9, 14, 4)


def chains(n_fixed=0):
    return [chain(n, seed=i, n_fixed=n_fixed) for i, n in enumerate(SIZES)]


def positions(structures):
    return [s.pos for s in structures]


def test_noise_depends_on_level_seed_and_number_only():
    """Whichever other structures there are: all methods and subsets have the same starts."""
    whole = noisy_starts(chains(), 0.2, seed=3, numbers=[0, 7, 2, 900])
    part = noisy_starts([chains()[i] for i in (3, 1)], 0.2, seed=3, numbers=[900, 7])
    for one, other in zip([whole[3], whole[1]], part, strict=True):
        assert torch.equal(one.pos, other.pos)
    for changes in ({"sigma": 0.1}, {"seed": 4}, {"numbers": [1, 3, 4, 5]}):
        args = {"sigma": 0.2, "seed": 3, "numbers": [0, 7, 2, 900], **changes}
        scale = 0.2 / args["sigma"]
        for true, one, other in zip(chains(), whole, noisy_starts(chains(), **args), strict=True):
            assert not torch.allclose(one.pos - true.pos, scale * (other.pos - true.pos))


@pytest.mark.parametrize("n_fixed", [0, 2])
def test_noise_has_its_level_and_spares_fixed_atoms(n_fixed):
    structures = [chain(40, seed=i, n_fixed=n_fixed) for i in range(30)]
    starts = noisy_starts(structures, 0.2, seed=0, numbers=range(30))
    for structure, start in zip(structures, starts, strict=True):
        noise = start.pos - structure.pos
        assert torch.equal(noise[:n_fixed], torch.zeros(n_fixed, 3, dtype=torch.float64))
        if not n_fixed:
            assert noise.mean(0).abs().max() < 1e-12
    noise = torch.cat([b.pos - a.pos for a, b in zip(structures, starts, strict=True)])
    assert noise[noise != 0].std() == pytest.approx(0.2, rel=0.03)
    assert all(torch.equal(s.pos, t.pos) for s, t in zip(structures, structures, strict=True))


def test_rmsd_superposes_open_structures_only():
    true = chains()[0]
    turned = true.pos[:, [1, 2, 0]] + 5.0  # a proper rotation
    assert rmsd([true], [turned]).item() == pytest.approx(0, abs=1e-7)
    held = Structure(true.numbers, true.pos, fixed=torch.arange(5) < 1)
    assert rmsd([held], [true.pos + torch.tensor([0.3, 0, 0])]).item() == pytest.approx(0.3)


def test_measures_of_a_perfect_and_of_a_hasty_relaxation():
    true, numbers = chains(), range(4)
    starts = noisy_starts(true, 0.3, seed=0, numbers=numbers)
    denoiser = ExactDenoiser(true)
    perfect = measure(true, starts, relax_structures(starts, denoiser))
    assert perfect.before.tolist() == rmsd(true, positions(starts)).tolist()
    assert perfect.after.max() < 0.05
    assert perfect.converged.all()
    assert torch.equal(perfect.found, denoiser.levels.sigma(denoiser.levels.nearest(perfect.found)))
    once = RelaxSettings(max_calls=1)
    hasty = measure(true, starts, relax_structures(starts, SpringDenoiser(), once))
    assert hasty.calls.tolist() == [1.0] * 4
    assert not hasty.converged.any()
    summary = perfect.summary()
    assert summary["n"] == 4
    assert summary["converged"] == summary["nearer"] == 1.0


def by_hand(**changes):
    values = {
        "before": [0.1, 0.2, 0.3, 0.4],
        "after": [0.05, 0.3, 0.1, 0.2],
        "calls": [1.0, 2.0, 3.0, float("nan")],
        "converged": [True, True, True, False],
        "found": [0.1, 0.3, 0.2, 0.4],
        **changes,
    }
    as_double = {k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()}
    return Measured(**as_double | {"converged": torch.tensor(values["converged"])})


def test_summary_by_hand():
    summary = by_hand().summary()
    expected = {
        "n": 4,
        "before_median": 0.25,
        "before_p90": 0.37,
        "before_mean": 0.25,
        "after_median": 0.15,
        "after_p90": 0.27,
        "after_mean": 0.1625,
        "ratio": 0.6,
        "nearer": 0.75,
        "converged": 0.75,
        "calls_median": 2.0,  # of those that are known
        "calls_p99": 2.98,
    }
    assert summary == pytest.approx(expected)
    some = by_hand().select([0, 2])
    assert len(some) == 2
    assert some.summary()["after_mean"] == pytest.approx(0.075)
    none = by_hand(calls=[float("nan")] * 4).summary()
    assert none["calls_median"] != none["calls_median"]


def test_rank_correlation_is_over_all_structures_together():
    one, other = by_hand(), by_hand(found=[0.5, 0.6, 0.7, 0.8])
    expected = spearmanr(
        torch.cat([one.found, other.found]), torch.cat([one.before, other.before])
    ).statistic
    assert rank_correlation([one, other]) == pytest.approx(expected)
    assert rank_correlation([one]) == pytest.approx(0.8)
    constant = rank_correlation([by_hand(found=[0.1] * 4)])
    assert constant != constant


def test_levels_found_are_those_of_the_noise():
    true = [chain(200, seed=i) for i in range(4)]
    found = levels_found(true, ExactDenoiser(true), 100, seed=0, numbers=range(4), batch_atoms=500)
    assert found.shape == (4,)
    assert (found - 100).abs().max() < 10
