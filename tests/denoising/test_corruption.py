"""Test the corruption of structures: invariants, statistics, exclusions, batch fields."""

import math

import pytest
import torch
from helpers.structures import make_batch

from dens.denoising.config import parse_config
from dens.denoising.corruption import (
    attach,
    corrupt,
    corrupt_batch,
    denoising_fields,
    eligible_structures,
)
from dens.random import make_generator

BASE = {"prob": 1.0, "denoising_coefficient": 10.0, "sigma": 0.1}
VARIANTS = {
    "all atoms": {},
    "partial": {"corrupt_ratio": 0.5},
    "partial, fixed too": {"corrupt_ratio": 0.5, "corrupt_fixed_atoms": True},
    "fixed alone": {"corrupt_ratio": 0.5, "corrupt_fixed_atoms": "only"},
    "some structures": {"prob": 0.5, "corrupt_ratio": 0.5},
    "whole batches": {"prob": 0.5, "granularity": "batch"},
    "ladder": {"sigma": None, "sigma_low": 0.01, "sigma_high": 0.3, "num_sigmas": 4},
    "strict": {"corrupt_ratio": 0.5, "strict_max_ratio": 0.4},
}


def run(config, batch, seed=0, **kwargs):
    generator = make_generator(seed, 0, 1)
    return corrupt(
        batch.pos, batch.batch, batch.natoms, config, generator, fixed=batch.fixed, **kwargs
    )


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_invariants(settings, dtype, seed):
    batch = make_batch(6)
    batch.pos = batch.pos.to(dtype)
    original = batch.pos.clone()
    config = parse_config({**BASE, **settings})
    c = run(config, batch, seed)

    assert torch.equal(batch.pos, original)
    assert torch.equal(c.pos - original, c.noise)
    assert torch.equal(c.noise[~c.noise_mask], torch.zeros_like(c.noise[~c.noise_mask]))
    assert (c.noise[c.noise_mask] != 0).any(dim=1).all()
    if config.corrupt_fixed_atoms is not True:
        assert not c.noise_mask[(batch.fixed == 1) != (config.corrupt_fixed_atoms == "only")].any()
    for s in range(6):
        atoms = batch.batch == s
        hit = c.noise_mask[atoms]
        # sigma is zero exactly for structures without a corrupted atom, else one of the levels
        assert (c.sigma[s] > 0) == hit.any()
        if hit.any():
            assert min(abs(c.sigma[s].item() - level) for level in config.sigmas) < 1e-6
        if config.strict_max_ratio:
            assert hit.float().mean() <= config.strict_max_ratio
    assert c.pos.dtype == c.noise.dtype == c.sigma.dtype == dtype


def test_excluded_structures_are_untouched():
    batch = make_batch(4)
    eligible = torch.tensor([True, False, True, False])
    c = run(parse_config(BASE), batch, eligible=eligible)
    assert torch.equal(c.sigma > 0, eligible)
    assert torch.equal(c.noise_mask, eligible[batch.batch] & (batch.fixed == 0))


def test_without_marks_no_atom_is_fixed(batch):
    settings = [{**BASE, "corrupt_fixed_atoms": atoms} for atoms in (False, "only")]
    structures = batch.pos, batch.batch, batch.natoms
    free, fixed = (corrupt(*structures, parse_config(s), make_generator(0)) for s in settings)
    assert free.noise_mask.all()
    assert not fixed.noise_mask.any()


def test_structures_that_a_host_rules_out_are_untouched(batch):
    config = parse_config({"prob": 1.0, "denoising_coefficient": 1.0, "sigma": 0.1})
    batch.corruptible = torch.tensor([True, False, True])
    corruption = corrupt_batch(batch, config, make_generator(0))
    assert (corruption.sigma > 0).tolist() == [True, False, True]


def test_noise_statistics():
    """Moments and shares of 200,000 atoms agree with theory within five standard errors."""
    n, per, sigma = 200_000, 10, 0.2
    pos, batch = torch.zeros(n, 3, dtype=torch.float64), torch.arange(n) // per
    natoms = torch.full((n // per,), per)
    config = parse_config({**BASE, "prob": 0.25, "corrupt_ratio": 0.4, "sigma": sigma})
    c = corrupt(pos, batch, natoms, config, make_generator(3, 0, 0))

    share = (c.sigma > 0).double().mean().item()
    expected = 0.25 * (1 - 0.6**per)
    assert abs(share - expected) < 5 * math.sqrt(0.25 / (n // per))
    ratio = c.noise_mask[(c.sigma > 0)[batch]].double().mean().item()
    assert abs(ratio - 0.4 / (1 - 0.6**per)) < 0.01
    x = c.noise[c.noise_mask].flatten() / sigma
    m = len(x)
    assert abs(x.mean()) < 5 / math.sqrt(m)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / m)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / m)
    # components are independent
    assert torch.corrcoef(c.noise[c.noise_mask].T).fill_diagonal_(0).abs().max() < 5 / math.sqrt(m)


def test_ladder_levels_are_equally_likely():
    n = 40_000
    config = parse_config({**BASE, **VARIANTS["ladder"]})
    c = corrupt(
        torch.zeros(n, 3), torch.arange(n), torch.ones(n).long(), config, make_generator(0, 0, 0)
    )
    counts = torch.stack(
        [torch.isclose(c.sigma, torch.tensor(s)).sum() for s in config.sigmas]
    ).double()
    assert counts.sum() == n
    assert (counts / n - 0.25).abs().max() < 5 * math.sqrt(0.1875 / n)
    for level in config.sigmas:
        here = torch.isclose(c.sigma, torch.tensor(level))
        assert c.noise[here].std().item() == pytest.approx(level, rel=0.05)


def test_granularity():
    config = {**BASE, "prob": 0.5}
    batch = make_batch(6)
    whole = [
        (run(parse_config({**config, "granularity": "batch"}), batch, s).sigma > 0).sum().item()
        for s in range(60)
    ]
    assert set(whole) == {0, 6}
    single = [(run(parse_config(config), batch, s).sigma > 0).sum().item() for s in range(60)]
    assert len(set(single)) > 3


def test_stream_depends_on_seed_rank_and_step_alone():
    batch, config = make_batch(3), parse_config(BASE)

    def noise(*key):
        torch.rand(7)  # the global stream must not matter
        return corrupt(batch.pos, batch.batch, batch.natoms, config, make_generator(*key)).noise

    before = torch.get_rng_state()
    reference = noise(1, 2, 3)
    assert torch.equal(reference, noise(1, 2, 3))
    for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (1, 3, 2)]:
        assert not torch.isclose(reference, noise(*other)).any()
    torch.set_rng_state(before)
    corrupt(batch.pos, batch.batch, batch.natoms, config, make_generator(0, 0, 0))
    assert torch.equal(torch.get_rng_state(), before)


EXCLUSIONS = [
    ({}, [1, 1, 1]),
    ({"exclude_md": True}, [1, 0, 1]),
    ({"exclude_md": "if_marked"}, [1, 0, 1]),
    ({"min_num_atoms": 3}, [0, 1, 1]),
    ({"max_force_norm": 4.9}, [1, 1, 0]),
    ({"max_force_norm": 5.1}, [1, 1, 1]),
    ({"max_mean_force_norm": 0.9}, [0, 1, 1]),
    ({"max_mean_force_norm": 1.1}, [1, 1, 1]),
    ({"max_stress_norm": 2.5}, [1, 1, 0]),
    ({"min_num_atoms": 3, "exclude_md": True}, [0, 0, 1]),
]


@pytest.mark.parametrize(("settings", "expected"), EXCLUSIONS)
def test_exclusions(settings, expected):
    """Exclude structures with a net force, marked md, or with large forces and stress."""
    forces = torch.zeros(9, 3)
    forces[:2, 0] = 1.0
    forces[5, 2], forces[6, 2] = 5.0, -5.0
    stress = torch.zeros(3, 3, 3)
    stress[2, 0, 0], stress[2, 1, 2] = 2.0, 2.0
    ok = eligible_structures(
        parse_config({**BASE, **settings}),
        forces=forces,
        batch=torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2]),
        natoms=torch.tensor([2, 3, 4]),
        md=torch.tensor([0, 1, 0]),
        stress=stress.view(9, 3),
    )
    assert ok.tolist() == [bool(e) for e in expected]


def test_exclusion_by_an_absent_field_is_an_error():
    shapes = {"forces": torch.zeros(2, 3), "batch": torch.zeros(2).long(), "natoms": torch.ones(1)}
    with pytest.raises(ValueError, match="no field md"):
        eligible_structures(parse_config({**BASE, "exclude_md": True}), **shapes)
    with pytest.raises(ValueError, match="no field stress"):
        eligible_structures(parse_config({**BASE, "max_stress_norm": 1.0}), **shapes)
    marked = parse_config({**BASE, "exclude_md": "if_marked"})
    assert eligible_structures(marked, **shapes).all()


def test_batch_fields(batch):
    forces = batch.forces.clone()
    assert denoising_fields(batch) is None
    c = run(parse_config({**BASE, "corrupt_ratio": 0.5}), batch)
    attach(batch, c, batch.forces)
    fields = denoising_fields(batch)
    assert torch.equal(batch.pos, c.pos)
    assert torch.equal(fields.noise_forces[c.noise_mask], forces[c.noise_mask])
    assert (fields.noise_forces[~c.noise_mask] == 0).all()
    assert torch.equal(batch.forces, forces)

    attach(batch, run(parse_config({**BASE, "prob": 0.0}), batch), batch.forces)
    assert denoising_fields(batch) is None
