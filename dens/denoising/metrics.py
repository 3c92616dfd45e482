"""Errors of the denoising task, as sums and weights that add up over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dens.metrics import Ratio, sigma_label

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
) -> dict[str, Ratio]:
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
        Ratio(error.abs().sum().item(), error.numel()),
        Ratio(cosine.sum().item(), len(cosine)),
        Ratio(error.square().sum().item(), true.square().sum().item()),
        Ratio(energy_error.abs().sum().item(), energy_error.numel()),
    )
    return dict(zip(NAMES, found, strict=True))


def finish(name: str, total: float, count: float) -> float:
    """The value of a metric of :func:`denoising_quality` from its sum and count, both > 0."""
    value = total / count
    return 1 - value if name.startswith("denoising_pos_explained_variance") else value


def add(first: Ratio, second: Ratio) -> Ratio:
    """The sum of two means in the making."""
    return Ratio(first.total + second.total, first.count + second.count)


def denoising_metrics(
    *,
    noise_pred: Tensor,
    noise: Tensor,
    noise_mask: Tensor,
    forces_pred: Tensor,
    forces: Tensor,
    energy_pred: Tensor,
    energy: Tensor,
    free: Tensor,
    batch: Tensor,
    sigma: Tensor,
    sigmas: Sequence[float] = (),
) -> dict[str, Ratio]:
    """Errors on the corrupted structures of a batch, in physical units.

    Args:
        noise_pred, noise: (n_atoms, 3), Å.
        noise_mask: (n_atoms,) bool, the set C.
        forces_pred, forces: (n_atoms, 3), eV/Å.
        energy_pred, energy: (n_structures,), eV.
        free: (n_atoms,) bool, atoms whose forces count.
        batch: (n_atoms,), structure of each atom.
        sigma: (n_structures,), Å, zero where clean.
        sigmas: the levels of a ladder, to tell the noise error level by level; with less than two
            there is nothing to tell apart.

    Returns:
        ``denoising_pos_mae`` (Å, atoms in C), ``denoising_forces_mae`` (eV/Å, the other counting
        atoms of corrupted structures), ``denoising_energy_mae`` (eV, corrupted structures), and
        ``denoising_pos_mae/sigma=...``; only those with at least one element.
    """
    corrupted = sigma > 0
    noise_error = (noise_pred - noise).abs()
    beside = free & ~noise_mask & corrupted[batch]
    found = {
        "denoising_pos_mae": noise_error[noise_mask],
        "denoising_forces_mae": (forces_pred - forces).abs()[beside],
        "denoising_energy_mae": (energy_pred - energy).abs()[corrupted],
    }
    if len(sigmas) > 1:
        of_atom = sigma[batch]
        for level in sigmas:
            here = noise_mask & torch.isclose(of_atom, of_atom.new_tensor(level), rtol=1e-3)
            found[f"denoising_pos_mae/{sigma_label(level)}"] = noise_error[here]
    return {name: Ratio(e.sum().item(), e.numel()) for name, e in found.items() if e.numel()}


def denoising_metric_names(sigmas: Sequence[float] = ()) -> list[str]:
    """All names that :func:`denoising_metrics` may return."""
    names = ["denoising_pos_mae", "denoising_forces_mae", "denoising_energy_mae"]
    levels = sigmas if len(sigmas) > 1 else ()
    return names + [f"denoising_pos_mae/{sigma_label(level)}" for level in levels]
