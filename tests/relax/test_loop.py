"""Test relaxations with denoisers that are known: ends, batches, fixed atoms, random numbers."""

import dataclasses
import math

import pytest
import torch
from helpers.denoisers import ExactDenoiser, SpringDenoiser, chain

from dens.noise_levels import NoiseLevels
from dens.relax.config import RelaxSettings
from dens.relax.loop import RelaxLoop, relax_structures
from dens.relax.structures import Denoised, Structure, centre
from dens.settings import ConfigError

SAMPLERS = ("direct", "jt", "as", "itp")
SIZES = (5, 1, 9, 14, 3, 8)


def noisy_chains(noise=0.2, n_fixed=0):
    return [chain(n, seed=i, noise=noise, n_fixed=n_fixed) for i, n in enumerate(SIZES)]


def settings_of(name, **changes):
    return RelaxSettings(sampler=name, **changes)


@pytest.mark.parametrize("n_fixed", [0, 2])
@pytest.mark.parametrize("name", SAMPLERS)
def test_all_samplers_end_at_the_known_structure(name, n_fixed):
    """With the exact score; centred where nothing is fixed, since drift is no displacement."""
    relaxed = [chain(n, seed=i, n_fixed=n_fixed) for i, n in enumerate(SIZES) if n > 2]
    starts = [chain(n, seed=i, noise=0.3, n_fixed=n_fixed) for i, n in enumerate(SIZES) if n > 2]
    denoiser = ExactDenoiser(relaxed)
    for start, end, found in zip(
        starts,
        relaxed,
        relax_structures(starts, denoiser, settings_of(name, max_calls=1000)),
        strict=True,
    ):
        assert found.converged
        expected = end.pos
        if not n_fixed:  # the mean does not move
            expected = end.pos - end.pos.mean(0) + start.pos.mean(0)
        torch.testing.assert_close(found.pos, expected, rtol=0, atol=1e-9)
        moved = (found.pos - start.pos)[start.free]
        assert found.moved == pytest.approx(moved.square().sum(1).mean().sqrt().item())
        assert found.sigmas == tuple(denoiser.levels.sigmas[t] for t in found.levels)


@pytest.mark.parametrize("n_fixed", [0, 1])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_gives_what_its_structures_give_alone(name, n_fixed):
    """Whatever the size of the batch and the order of the queue."""
    few = NoiseLevels.polynomial(100)
    structures = noisy_chains(n_fixed=n_fixed)
    settings = settings_of(name, max_calls=None if name == "itp" else 12)
    together = relax_structures(structures, SpringDenoiser(few), settings, seed=3)
    order = [4, 0, 5, 2, 3, 1]
    alone = [
        relax_structures([structures[i]], SpringDenoiser(few), settings, seed=3, numbers=[i])[0]
        for i in range(len(structures))
    ]
    small = settings.model_copy(update={"batch_atoms": 10})
    refilled = relax_structures(
        [structures[i] for i in order], SpringDenoiser(few), small, seed=3, numbers=order
    )
    for i, expected in enumerate(together):
        for other in (alone[i], refilled[order.index(i)]):
            assert other.levels == expected.levels
            assert other.reason == expected.reason
            torch.testing.assert_close(other.pos, expected.pos, rtol=0, atol=1e-6)
    assert len({found.calls for found in together}) > 1  # places became free at different times
    if name != "direct":
        again = relax_structures(structures, SpringDenoiser(few), settings, seed=4)
        assert not torch.equal(again[0].pos, together[0].pos)


def test_batches_are_full_and_refilled():
    structures = noisy_chains()
    denoiser = SpringDenoiser()
    found = relax_structures(structures, denoiser, settings_of("direct", batch_atoms=15))
    sizes = [len(batch.pos) for batch, _ in denoiser.asked]
    assert max(sizes) <= 15
    assert sizes[0] == 15  # 5 + 1 + 9
    assert sum(found.calls for found in found) == sum(len(b) for b, _ in denoiser.asked)
    denoiser = SpringDenoiser()
    relax_structures(structures, denoiser, settings_of("direct", batch_atoms=1))
    assert {len(batch) for batch, _ in denoiser.asked} == {1}


def test_the_queue_is_read_as_it_is_needed():
    read = []

    def queue():
        for i, structure in enumerate(noisy_chains()):
            read.append(i)
            yield structure

    loop = RelaxLoop(queue(), SpringDenoiser(), settings_of("direct", batch_atoms=6))
    assert read == []
    first, _ = next(iter(loop))
    assert first in (0, 1)
    assert len(read) < 5


@pytest.mark.parametrize("name", SAMPLERS)
def test_fixed_atoms_do_not_move(name):
    """Bit for bit, though they lie far out and the denoiser would move them."""
    structures = [dataclasses.replace(s, pos=s.pos + 1234.56789) for s in noisy_chains(n_fixed=2)]
    found = relax_structures(
        structures, SpringDenoiser(), settings_of(name, max_calls=9, start_level=0.1)
    )
    for start, end in zip(structures, found, strict=True):
        held = start.fixed
        assert torch.equal(end.pos[held], start.pos[held])
        if (~held).any():
            assert (end.pos[~held] != start.pos[~held]).any(1).all()
            assert end.moved > 0
        else:
            assert end.moved == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_free_structures_do_not_drift(name):
    structures = noisy_chains()
    for start, end in zip(
        structures,
        relax_structures(structures, Drifting(), settings_of(name, max_calls=9)),
        strict=True,
    ):
        torch.testing.assert_close(end.pos.mean(0), start.pos.mean(0), rtol=0, atol=1e-12)


class Drifting(SpringDenoiser):
    """Springs, and a drift of all atoms that the loop must remove."""

    def displacement(self, batch):
        return super().displacement(batch) + 0.5


@pytest.mark.parametrize("name", ["direct", "itp"])
def test_without_random_numbers_the_end_rotates_with_the_start(name, monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda *shape, generator, dtype: torch.zeros(shape))
    rotation, _ = torch.linalg.qr(torch.tensor([[1.0, 2, 3], [0, 1, 4], [5, 6, 0]]).double())
    structures = [chain(n, seed=3, noise=0.0) for n in (4, 7)]
    bent = [dataclasses.replace(s, pos=s.pos + 0.2 * s.pos.sin()) for s in structures]
    turned = [dataclasses.replace(s, pos=s.pos @ rotation) for s in bent]
    ends, turned_ends = (
        relax_structures(part, SpringDenoiser(), settings_of(name)) for part in (bent, turned)
    )
    for end, turned_end in zip(ends, turned_ends, strict=True):
        assert end.levels == turned_end.levels
        torch.testing.assert_close(turned_end.pos, end.pos @ rotation, rtol=0, atol=1e-9)


def test_levels_are_told_where_the_sampler_knows_them():
    structures = noisy_chains()
    for name in ("direct", "jt", "as"):
        denoiser = SpringDenoiser()
        relax_structures(structures, denoiser, settings_of(name, max_calls=3))
        assert all(level is None for _, level in denoiser.asked)
    denoiser = SpringDenoiser()
    found = relax_structures(structures, denoiser, settings_of("itp", batch_atoms=20))
    for result in found:
        assert result.levels == tuple(range(result.levels[0], -1, -1))
        assert result.reason == "countdown"
    told = [level for _, level in denoiser.asked if level is not None]
    assert len(told) > 10
    assert {int(level.min()) for level in told} >= {0, 1, 2}
    assert sum(len(b) for b, level in denoiser.asked if level is None) == len(structures)


def test_history_and_reasons():
    structures = noisy_chains()
    found = relax_structures(structures, SpringDenoiser(), keep_history=True)
    for start, end in zip(structures, found, strict=True):
        assert len(end.history) == end.calls
        assert torch.equal(end.history[0], start.pos)
    assert found[1].reason == "relaxed"  # a single atom
    assert "noise" in found[1].why
    short = relax_structures(structures, SpringDenoiser(), RelaxSettings(max_calls=1))
    assert {result.reason for result in short} == {"relaxed", "max_calls"}
    assert not all(result.converged for result in short)
    assert relax_structures(structures, SpringDenoiser())[0].history == ()


def test_noise_can_be_added_first():
    structures = [chain(200, seed=7)]
    settings = settings_of("direct", start_level=0.1)
    found = relax_structures(structures, SpringDenoiser(), settings, keep_history=True)[0]
    added = found.history[0] - structures[0].pos
    assert added.std().item() == pytest.approx(0.1, rel=0.1)
    assert added.mean(0).abs().max() < 1e-12
    again = relax_structures(structures, SpringDenoiser(), settings)[0]
    assert torch.equal(again.pos, found.pos)


class Broken(SpringDenoiser):
    """Springs whose output is not finite for structures of nine atoms."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def __call__(self, batch, level):
        noise, level = super().__call__(batch, level)
        ill = batch.natoms == 9
        if self.what == "noise":
            return Denoised(torch.where(ill[batch.batch][:, None], math.inf, noise), level)
        unknown = self.levels.index_of(torch.where(ill, math.nan, 0.5))
        return Denoised(noise, torch.where(ill, unknown, level))


@pytest.mark.parametrize("what", ["noise", "level"])
def test_a_broken_output_ends_its_structure_alone(what):
    structures = noisy_chains()
    expected = relax_structures(structures, SpringDenoiser())
    found = relax_structures(structures, Broken(what))
    for i, (start, end) in enumerate(zip(structures, found, strict=True)):
        if len(start) == 9:
            assert (end.reason, end.converged, end.calls) == ("not_finite", False, 1)
            assert torch.equal(end.pos, start.pos)
        else:
            assert torch.equal(end.pos, expected[i].pos)


def test_periodic_structures_are_not_wrapped():
    cell = torch.diag(torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64))
    start = chain(6, seed=2, noise=0.1)
    outside = Structure(start.numbers, start.pos - 30.0, cell)
    denoiser = SpringDenoiser()
    end = relax_structures([outside, start], denoiser)[0]
    assert (end.pos.mean(0) - outside.pos.mean(0)).abs().max() < 1e-12
    batch, _ = denoiser.asked[0]
    assert batch.pbc.tolist() == [[True] * 3, [False] * 3]
    assert torch.equal(batch.cell[0], cell)
    assert not batch.cell[1].any()
    assert torch.equal(centre(end.pos, *one(6)), end.pos - end.pos.mean(0))


def one(n_atoms):
    return torch.zeros(n_atoms, dtype=torch.long), torch.tensor([n_atoms])


def test_errors():
    ladder = SpringDenoiser(NoiseLevels.geometric(0.01, 0.3, 5))
    with pytest.raises(ConfigError, match="stop_level must be < 5"):
        relax_structures(noisy_chains(), ladder, RelaxSettings(stop_level=15))
    with pytest.raises(ValueError, match="numbers must differ"):
        relax_structures(noisy_chains()[:2], ladder, numbers=[1, 1])
    with pytest.raises(ValueError, match="zip"):
        relax_structures(noisy_chains()[:2], ladder, numbers=[1])
    assert relax_structures([], ladder) == []
