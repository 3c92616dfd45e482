"""How well noise is predicted: errors of one pass over corrupted structures, as sums and counts."""

from __future__ import annotations

import torch
from torch import Tensor

from dens.metrics import Mean

NAMES = (
    "denoising_pos_mae",
    "denoising_pos_cosine",
    "denoising_pos_explained_variance",
    "denoising_energy_mae",
)


def denoising_quality(
    *,
    noise_pred: Tensor,
    noise: Tensor,
    noise_mask: Tensor,
    energy_pred: Tensor,
    energy: Tensor,
    sigma: Tensor,
) -> dict[str, Mean]:
    r"""Errors of a batch at one noise level.

    .. math:: \text{explained variance} = 1 - \frac{\sum_{i \in C} |\hat\epsilon_i - \epsilon_i|^2}
        {\sum_{i \in C} |\epsilon_i|^2}

    of which the fraction is kept here, since it adds up over batches: see :func:`finish`.

    Args:
        noise_pred, noise: (n_atoms, 3), Å.
        noise_mask: (n_atoms,) bool, the set C.
        energy_pred, energy: (n_structures,), eV.
        sigma: (n_structures,), Å, zero where clean.

    Returns:
        A sum and a count for each of :data:`NAMES`.
    """
    pred, true, corrupted = noise_pred[noise_mask], noise[noise_mask], sigma > 0
    error = pred - true
    cosine = torch.nn.functional.cosine_similarity(pred, true, dim=-1)
    energy_error = (energy_pred - energy)[corrupted]
    found = (
        Mean(error.abs().sum().item(), error.numel()),
        Mean(cosine.sum().item(), len(cosine)),
        Mean(error.square().sum().item(), true.square().sum().item()),
        Mean(energy_error.abs().sum().item(), energy_error.numel()),
    )
    return dict(zip(NAMES, found, strict=True))


def finish(name: str, total: float, count: float) -> float:
    """The value of a metric of :func:`denoising_quality` from its sum and count, both > 0."""
    value = total / count
    return 1 - value if name.startswith("denoising_pos_explained_variance") else value


def add(first: Mean, second: Mean) -> Mean:
    """The sum of two means in the making."""
    return Mean(first.total + second.total, first.count + second.count)
