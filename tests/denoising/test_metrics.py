"""Metrics: errors by hand, ratios that add up, and the table that names them."""

import pytest
import torch

from dens.denoising.metrics import denoising_metrics, noise_quality
from dens.metrics import Ratio, at_level, find_metric, hides_forces

NOISE_COSINE = ("noise cosine similarity, sigma = 0.10 Å", "", "higher", "Denoising")


def inputs(**changes):
    """Two structures of two atoms; the first is corrupted on its first atom."""
    zeros = torch.zeros(4, 3)
    return {
        "noise_pred": torch.tensor([[0.3, 0, 0], [9, 9, 9], [9, 9, 9], [9, 9, 9]]),
        "noise": zeros,
        "noise_mask": torch.tensor([True, False, False, False]),
        "forces_pred": torch.tensor([[9, 9, 9], [0.6, 0, 0], [9, 9, 9], [9, 9, 9]]),
        "forces": zeros,
        "energy_pred": torch.tensor([2.0, 9]),
        "energy": torch.zeros(2),
        "free": torch.ones(4, dtype=torch.bool),
        "batch": torch.tensor([0, 0, 1, 1]),
        "sigma": torch.tensor([0.1, 0.0]),
        **changes,
    }


def test_by_hand():
    found = denoising_metrics(**inputs())
    means = {name: (mean.value, mean.weight) for name, mean in found.items()}
    assert means == {
        "denoising_pos_mae": (pytest.approx(0.1), 3),
        "denoising_forces_mae": (pytest.approx(0.2), 3),
        "denoising_energy_mae": (pytest.approx(2.0), 1),
    }


def test_ladder_levels_are_told_apart():
    mask = torch.tensor([True, False, True, True])
    sigma = torch.tensor([0.1, 0.025])
    found = denoising_metrics(**inputs(noise_mask=mask, sigma=sigma, sigmas=(0.025, 0.1)))
    assert found["denoising_pos_mae/sigma=0.10"].total == pytest.approx(0.3)
    assert found["denoising_pos_mae/sigma=0.025"].weight == 6


def test_nothing_to_count_is_left_out():
    free = torch.tensor([True, False, True, True])
    assert "denoising_forces_mae" not in denoising_metrics(**inputs(free=free))


@pytest.mark.parametrize(
    ("sigma", "label"), [(0.1, "0.10"), (0.025, "0.025"), (1.0, "1.00"), (0.15, "0.15")]
)
def test_level_in_a_name(sigma, label):
    assert at_level("error", sigma) == f"error/sigma={label}"


def test_quality_by_hand_and_added_over_batches():
    """The second batch has twice the noise and predicts none of it."""
    noise = torch.tensor([[0.3, 0, 0], [0, 0.1, 0]])
    first = noise_quality(noise, noise)
    assert first["denoising_pos_explained_variance"].value == 1
    assert first["denoising_pos_cosine"].value == pytest.approx(1)
    second = noise_quality(0 * noise, 2 * noise)
    both = {name: first[name] + second[name] for name in first}
    assert both["denoising_pos_cosine"].value == pytest.approx(0.5)
    assert both["denoising_pos_explained_variance"].value == pytest.approx(1 / 5)
    assert Ratio(1, 2) + Ratio(3, 6) == (4, 8)


@pytest.mark.parametrize(
    ("name", "title", "unit", "better", "group"),
    [
        ("forces_mae", "force MAE", "eV/Å", "lower", "S2EF"),
        ("energy_forces_within_threshold", "energy forces within threshold", "", "higher", "S2EF"),
        ("stress_mae", "stress MAE", "eV/Å³", "lower", "S2EF"),
        ("stress_isotropic_mae", "stress isotropic mae", "", "lower", "S2EF"),
        ("denoising_pos_cosine/sigma=0.10/no_forces", *NOISE_COSINE),
        ("loss_noise", "loss term: noise", "", "lower", "Optimisation"),
        ("gradient_share_forces", "share of the gradient: forces", "", None, "Optimisation"),
        ("epoch", "epoch", "", None, "S2EF"),
    ],
)
def test_logged_names_are_found_in_the_table(name, title, unit, better, group):
    metric = find_metric(name)
    assert (metric.title, metric.unit, metric.better, metric.group) == (title, unit, better, group)
    assert hides_forces(name) == (metric.name != name)
