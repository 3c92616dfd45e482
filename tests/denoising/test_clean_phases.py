"""The schedule of the corruption: which steps corrupt, and that their draws stay the same."""

from __future__ import annotations

import doctest

import pytest
import torch
from helpers.structures import make_batch

from dens.denoising import clean_phases
from dens.denoising.config import corrupt_all, parse_config
from dens.denoising.objective import DeNSObjective
from dens.objective import Progress
from dens.random import make_generator
from dens.settings import ConfigError

BASE = {"prob": 0.9, "sigma": 0.1, "denoising_coefficient": 1.0}
STEPS, EPOCHS, STRUCTURES = 40, 4, 950  # ten steps an epoch


def corrupting(structures: int = STRUCTURES, **settings) -> list[int]:
    """List the steps, counted from 1, at which a training may corrupt structures."""
    dens = parse_config({**BASE, **settings})
    return [
        n
        for n in range(1, STEPS + 1)
        if clean_phases.probability(dens, Progress(n * EPOCHS / STEPS, EPOCHS, structures)) > 0
    ]


@pytest.mark.parametrize(
    ("settings", "first", "last"),
    [
        ({}, 1, 40),
        ({"clean_end": 0.5}, 1, 20),
        ({"clean_end": 0.3}, 1, 28),
        ({"clean_end": "auto", "structures": 100_000}, 1, 20),
        ({"clean_end": "auto"}, 1, 0),
        ({"clean_start": 0.2, "clean_end": "auto"}, 1, 0),
        ({"clean_start": 0.1}, 5, 40),
        ({"clean_start": 0.25, "clean_end": 0.25}, 11, 30),
        ({"early_epochs": 3}, 1, 30),
        ({"early_epochs": 3, "clean_end": 0.5}, 1, 20),
    ],
)
def test_steps_that_corrupt(settings, first, last):
    assert corrupting(**settings) == list(range(first, last + 1))


def test_the_examples_of_the_module():
    assert doctest.testmod(clean_phases) == (0, 5)


@pytest.mark.parametrize("setting", ["clean_end", "clean_start"])
def test_a_schedule_changes_no_draw(setting):
    """Steps that corrupt do what they do without a schedule, so that runs can be compared."""
    step = Progress(2.0, 4.0, STRUCTURES)
    clean = step._replace(epoch=4.0 if setting == "clean_end" else 1.0)
    batches = []
    for dens in (BASE, {**BASE, setting: 0.5 if setting == "clean_end" else 0.25}):
        objective = DeNSObjective(parse_config(dens))
        batches.append(make_batch())
        objective.apply(batches[-1], make_generator(0), step)
    assert batches[0].noise_mask.any()
    for field in ("pos", "noise", "noise_mask", "sigma", "noise_forces"):
        assert torch.equal(batches[0][field], batches[1][field])

    batch, before = make_batch(), make_batch().pos
    objective.apply(batch, make_generator(0), clean)
    assert torch.equal(batch.pos, before)
    assert not batch.corrupted


def test_measuring_denoising_ignores_the_schedule():
    dens = parse_config({**BASE, "clean_end": 0.9, "clean_start": 0.05, "early_epochs": 1})
    assert not clean_phases.is_scheduled(corrupt_all(dens, make_batch()))


def test_what_is_logged():
    """Only what changes in training."""
    progress = Progress(3.0, 4.0, STRUCTURES)
    assert DeNSObjective(parse_config(BASE)).schedule(progress) == {}
    both = {**BASE, "clean_end": 0.5, "denoising_coefficient_end": 0.0}
    expected = {"prob": 0.0, "denoising_coefficient": 0.25}
    assert DeNSObjective(parse_config(both)).schedule(progress) == expected


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, ""),
        ({"clean_end": "auto", "prob": 0.0}, ""),
        ({"clean_end": 0.5}, "from epoch 0 to 2 of 4"),
        ({"clean_start": 0.25, "early_epochs": 3}, "from epoch 1 to 3 of 4"),
        ({"clean_end": "auto"}, "in none of 4 epochs (clean_end: auto)"),
        (
            {"clean_start": 0.5, "early_epochs": 1},
            "in none of 4 epochs (clean_start, clean_end, early_epochs)",
        ),
    ],
)
def test_what_the_header_of_a_run_says(settings, said):
    objective = DeNSObjective(parse_config({**BASE, **settings}))
    assert objective.describe_phases(Progress(0.0, EPOCHS, STRUCTURES)) == said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clean_end": 1.0}, "clean_end must be a number in [0, 1), or 'auto', got 1.0"),
        ({"clean_end": -0.1}, "clean_end must be a number in [0, 1), or 'auto', got -0.1"),
        ({"clean_end": "half"}, "clean_end must be a number in [0, 1), or 'auto', got 'half'"),
        ({"clean_start": 1.0}, "clean_start must be a number in [0, 1), got 1.0"),
        ({"clean_start": 0.6, "clean_end": 0.4}, "their sum must be < 1"),
        ({"clean_start": 0.5, "clean_end": "auto"}, "their sum must be < 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError) as error:
        parse_config({**BASE, **settings})
    assert message in str(error.value)
    assert "optim.dens" in str(error.value)
