"""Errors of the denoising task, as sums and counts that add up over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """A mean in the making: ``total / count``, once there is something to count."""

    total: float
    count: int


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
) -> dict[str, Mean]:
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
    return {name: Mean(e.sum().item(), e.numel()) for name, e in found.items() if e.numel()}


def denoising_metric_names(sigmas: Sequence[float] = ()) -> list[str]:
    """All names that :func:`denoising_metrics` may return."""
    names = ["denoising_pos_mae", "denoising_forces_mae", "denoising_energy_mae"]
    levels = sigmas if len(sigmas) > 1 else ()
    return names + [f"denoising_pos_mae/{sigma_label(level)}" for level in levels]


def sigma_label(sigma: float) -> str:
    """The label of a noise level: two decimals, more where they are needed.

    >>> sigma_label(0.1), sigma_label(0.025)
    ('sigma=0.10', 'sigma=0.025')
    """
    text = f"{sigma:.4g}"
    return "sigma=" + max(text, f"{sigma:.2f}", key=len)
