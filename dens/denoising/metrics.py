"""Errors of the denoising task, as ratios that add up over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dens.metrics import (
    LEVEL_MAE,
    NOISE_COSINE,
    NOISE_EXPLAINED,
    NOISE_MAE,
    NOISY_ENERGY_MAE,
    NOISY_FORCES_MAE,
    Ratio,
    at_level,
)

# measured by the denoising validation
VALIDATED = (NOISE_MAE, NOISE_EXPLAINED, NOISE_COSINE, NOISY_ENERGY_MAE, LEVEL_MAE)


def _mae(pred: Tensor, true: Tensor, rows: Tensor) -> Ratio:
    """Average the absolute error over all components of ``rows``, a mask."""
    error = (pred - true)[rows].abs()
    return Ratio(error.sum().item(), error.numel())


def noise_quality(pred: Tensor, true: Tensor) -> dict[str, Ratio]:
    r"""Compute the explained variance and the cosine similarity of predicted noise.

    .. math:: \text{explained variance} = 1 - \frac{\sum_{i \in C} |\hat\epsilon_i - \epsilon_i|^2}
        {\sum_{i \in C} |\epsilon_i|^2}

    Args:
        pred, true: (n, 3), Å, the noise of the atoms in C.

    Returns:
        ``denoising_pos_explained_variance`` and ``denoising_pos_cosine``.
    """
    variance, unexplained = true.square().sum().item(), (pred - true).square().sum().item()
    cosine = torch.nn.functional.cosine_similarity(pred, true, dim=-1)
    return {
        NOISE_EXPLAINED: Ratio(variance - unexplained, variance),
        NOISE_COSINE: Ratio(cosine.sum().item(), len(cosine)),
    }


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
    with_energy: Tensor | None = None,
) -> dict[str, Ratio]:
    """Compute the errors on the corrupted structures of a batch, in physical units.

    Args:
        noise_pred, noise: (n_atoms, 3), Å.
        noise_mask: (n_atoms,) bool, the set C.
        forces_pred, forces: (n_atoms, 3), eV/Å.
        energy_pred, energy: (n_structures,), eV.
        free: (n_atoms,) bool, atoms whose forces count.
        batch: (n_atoms,), structure of each atom.
        sigma: (n_structures,), Å, zero where clean.
        sigmas: the levels of a ladder, to report the noise error of each level as well; fewer than
            two change nothing.
        with_energy: (n_structures,) bool, structures whose energy counts; None is all.

    Returns:
        A :class:`~dens.metrics.Ratio` by name: ``denoising_pos_mae`` (Å, atoms in C),
        ``denoising_forces_mae`` (eV/Å, the other counting atoms of corrupted structures),
        ``denoising_energy_mae`` (eV, corrupted structures) and ``denoising_pos_mae/sigma=...``;
        only those with at least one element.
    """
    corrupted, of_atom = sigma > 0, sigma[batch]
    with_energy = corrupted if with_energy is None else corrupted & with_energy
    beside = free & ~noise_mask & corrupted[batch]
    found = {
        NOISE_MAE: _mae(noise_pred, noise, noise_mask),
        NOISY_FORCES_MAE: _mae(forces_pred, forces, beside),
        NOISY_ENERGY_MAE: _mae(energy_pred, energy, with_energy),
    }
    for level in sigmas if len(sigmas) > 1 else ():
        here = noise_mask & torch.isclose(of_atom, of_atom.new_tensor(level), rtol=1e-3)
        found[at_level(NOISE_MAE, level)] = _mae(noise_pred, noise, here)
    return {name: mean for name, mean in found.items() if mean.weight}


def denoising_metric_names(sigmas: Sequence[float] = ()) -> list[str]:
    """List all names that :func:`denoising_metrics` may return."""
    levels = sigmas if len(sigmas) > 1 else ()
    of_levels = [at_level(NOISE_MAE, level) for level in levels]
    return [NOISE_MAE, NOISY_FORCES_MAE, NOISY_ENERGY_MAE, *of_levels]
