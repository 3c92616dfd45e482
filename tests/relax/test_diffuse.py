"""Test the forward process: noise of free atoms, levels, pairs, independence of the batch."""

import math

import numpy as np
import pytest
import torch
from helpers.structures import make_batch

from dens.noise_levels import NoiseLevels
from dens.random import make_generator
from dens.relax.diffuse import diffuse, sample_morered_draws
from dens.relax.quality import displacement
from dens.relax.structures import centre

LEVELS = NoiseLevels.polynomial()
MAX_LEVEL = 400


def draws_of(natoms, ids, dtype=torch.float64):
    return sample_morered_draws(natoms, [make_generator(0, 0, 3, i) for i in ids], dtype)


def open_batch(natoms=(5, 1, 9, 14), seed=0):
    generator = torch.Generator().manual_seed(seed)
    natoms = torch.tensor(natoms)
    pos = 2 * torch.randn(int(natoms.sum()), 3, generator=generator, dtype=torch.float64)
    return pos, torch.arange(len(natoms)).repeat_interleave(natoms), natoms


def random_rotation(seed=0):
    q, _ = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    return q * torch.det(q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_of_free_atoms(dtype):
    batch = make_batch(6)
    pos, original = batch.pos.to(dtype), batch.pos.to(dtype).clone()
    draws = draws_of(batch.natoms, range(6), dtype)
    found = diffuse(pos, batch.batch, batch.natoms, LEVELS, MAX_LEVEL, draws, fixed=batch.fixed)
    assert torch.equal(pos, original)
    held = batch.fixed == 1
    assert torch.equal(found.pos[held], pos[held])
    assert not found.noise[held].any()
    assert torch.equal(found.noise[~held], draws.unit_noise[~held])
    assert torch.equal(found.sigma, LEVELS.sigma(found.level, dtype))
    assert ((found.level >= 0) & (found.level < MAX_LEVEL)).all()
    moved = found.sigma[batch.batch][:, None] * found.noise
    torch.testing.assert_close(found.pos - pos, moved, rtol=0, atol=1e-5)
    assert found.pos.dtype == found.noise.dtype == found.sigma.dtype == dtype


def test_noise_is_centred_where_nothing_is_fixed():
    pos, batch, natoms = open_batch()
    fixed = torch.zeros(len(pos))
    fixed[batch == 3] = (torch.arange(14) < 2).float()
    draws = draws_of(natoms, range(4))
    noise = diffuse(pos, batch, natoms, LEVELS, MAX_LEVEL, draws, fixed=fixed).noise
    for s in range(3):
        assert noise[batch == s].mean(0).abs().max() < 1e-14
    assert noise[batch == 3].mean(0).abs().min() > 1e-3
    assert torch.equal(noise[batch == 1], torch.zeros(1, 3, dtype=torch.float64))  # one free atom
    assert torch.equal(centre(noise, batch, natoms)[batch == 1], noise[batch == 1])


def test_levels_are_uniform():
    natoms = torch.ones(4000, dtype=torch.long)
    draws = draws_of(natoms, range(4000))
    pos, batch = torch.zeros(4000, 3), torch.arange(4000)
    level = diffuse(pos, batch, natoms, LEVELS, 10, draws).level
    count = level.bincount(minlength=10)
    assert len(count) == 10
    assert (count - 400).abs().max() < 4 * math.sqrt(400)


def test_a_structure_gets_the_same_whatever_its_batch():
    pos, batch, natoms = open_batch()
    whole = diffuse(pos, batch, natoms, LEVELS, MAX_LEVEL, draws_of(natoms, range(4)))
    for s in (3, 0, 2):
        own, one = batch == s, natoms[s : s + 1]
        alone = diffuse(
            pos[own], torch.zeros_like(batch[own]), one, LEVELS, MAX_LEVEL, draws_of(one, [s])
        )
        assert torch.equal(alone.pos, whole.pos[own])
        assert torch.equal(alone.noise, whole.noise[own])
        assert torch.equal(alone.level[0], whole.level[s])


def test_pairs_stand_in_for_noise():
    """The start of an open structure is superposed; rows that are not finite count as no pair."""
    pos, batch, natoms = open_batch()
    generator = torch.Generator().manual_seed(5)
    moved = 0.1 * torch.randn(pos.shape, generator=generator, dtype=torch.float64)
    start = (pos + moved) @ random_rotation() + torch.tensor([3.0, -7.0, 1.0])
    start[batch == 0] = math.nan
    draws = draws_of(natoms, range(4))
    plain = diffuse(pos, batch, natoms, LEVELS, MAX_LEVEL, draws)
    found = diffuse(pos, batch, natoms, LEVELS, MAX_LEVEL, draws, pos_start=start, pair_share=1.0)
    assert torch.equal(found.pos[batch == 0], plain.pos[batch == 0])
    assert torch.equal(found.level[0], plain.level[0])
    torch.testing.assert_close(found.pos[batch == 1], pos[batch == 1])  # one atom: no displacement
    assert found.level[1] == 0
    for s in (2, 3):
        own = batch == s
        distances = torch.cdist(start[own], start[own])
        torch.testing.assert_close(torch.cdist(found.pos[own], found.pos[own]), distances)
        displacement = found.pos[own] - pos[own]
        assert displacement.square().mean() <= centre_of(moved[own]).square().mean() + 1e-12
        rms = displacement.square().mean().sqrt()
        assert found.level[s] == LEVELS.nearest(rms)
        torch.testing.assert_close(found.noise[own] * found.sigma[s], displacement)
        assert displacement.mean(0).abs().max() < 1e-12


def centre_of(vectors):
    return vectors - vectors.mean(0)


def test_a_share_of_the_pairs_is_used():
    natoms = torch.full((1000,), 3)
    pos, batch, _ = open_batch((3,) * 1000)
    start = pos + 0.01 * torch.arange(len(pos)).remainder(7)[:, None]
    draws = draws_of(natoms, range(1000))
    arguments = (pos, batch, natoms, LEVELS, MAX_LEVEL, draws)
    plain = diffuse(*arguments)
    found = diffuse(*arguments, pos_start=start, pair_share=0.3)
    changed = (found.noise != plain.noise).any(1).view(-1, 3).any(1)
    assert torch.equal(changed, draws.coins < 0.3)
    assert 230 < changed.sum() < 370


def test_pairs_beyond_the_highest_level_keep_their_displacement():
    pos, batch, natoms = open_batch((6,))
    start = pos * 1.5
    found = diffuse(
        pos, batch, natoms, LEVELS, 20, draws_of(natoms, [0]), pos_start=start, pair_share=1.0
    )
    assert found.level.tolist() == [19]
    torch.testing.assert_close(found.pos, centre_of(start) + pos.mean(0))


def test_pairs_of_periodic_structures_take_the_minimum_image():
    """Fixed atoms stay; nothing is rotated; without fixed atoms the mean displacement goes."""
    batch = make_batch(3)
    pos = batch.pos.double()
    rng = np.random.default_rng(0)
    moved = torch.from_numpy(rng.normal(0, 0.2, pos.shape))
    wraps = torch.from_numpy(rng.integers(-2, 3, pos.shape)).double()
    wrapped = torch.einsum("ij,ijk->ik", wraps, batch.cell.double()[batch.batch])
    layout = {"batch": batch.batch, "natoms": batch.natoms, "cell": batch.cell}
    start = pos + moved + wrapped
    found = displacement(start, pos, fixed=batch.fixed, **layout)
    expected = torch.where((batch.fixed == 0)[:, None], moved, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    free = displacement(start, pos, **layout)
    expected = centre(moved, batch.batch, batch.natoms)
    torch.testing.assert_close(free, expected, rtol=0, atol=1e-5)
