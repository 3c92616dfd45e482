import pytest
import torch

from dens.denoising.metrics import denoising_metrics
from dens.metrics import sigma_label


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
    means = {name: (mean.total / mean.count, mean.count) for name, mean in found.items()}
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
    assert found["denoising_pos_mae/sigma=0.025"].count == 6


def test_nothing_to_count_is_left_out():
    free = torch.tensor([True, False, True, True])
    assert "denoising_forces_mae" not in denoising_metrics(**inputs(free=free))


@pytest.mark.parametrize(
    ("sigma", "label"), [(0.1, "0.10"), (0.025, "0.025"), (1.0, "1.00"), (0.15, "0.15")]
)
def test_sigma_label(sigma, label):
    assert sigma_label(sigma) == f"sigma={label}"
