"""DeNS loss: errors of forces and noise, averaged over the atoms of all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dens.ranks import global_mean, sum_over_ranks


class DeNSLoss(NamedTuple):
    """The weighted terms of forces and noise, scalars; the loss is their sum plus the energy's."""

    forces: Tensor
    noise: Tensor


def l2_error(pred: Tensor, target: Tensor) -> Tensor:
    """Compute the Euclidean distance of each row: (n, 3), (n, 3) -> (n,)."""
    return torch.linalg.vector_norm(pred - target, dim=-1)


def loss_counts(noise_mask: Tensor, free: Tensor, reduction: str) -> Tensor:
    r"""Count the atoms of each mean of :func:`dens_loss`, forces and noise: (2,).

    Args:
        noise_mask: (n_atoms,) bool, the set C.
        free: (n_atoms,) bool, the set F of atoms whose forces count.
        reduction: ``joint``, \|F u C\| for both, or ``separate``, \|F \\ C\| and \|C\|.
    """
    if reduction == "joint":
        return (free | noise_mask).sum().expand(2)
    return torch.stack([(free & ~noise_mask).sum(), noise_mask.sum()])


def dens_loss(
    *,
    forces_pred: Tensor,
    forces: Tensor,
    noise_pred: Tensor,
    noise: Tensor,
    noise_mask: Tensor,
    free: Tensor,
    force_coefficient: float,
    denoising_coefficient: float,
    reduction: str = "joint",
    counts: Tensor | None = None,
    error: Callable[[Tensor, Tensor], Tensor] = l2_error,
) -> DeNSLoss:
    r"""Compute the loss for forces of clean atoms and noise of corrupted ones (arXiv:2403.09549).

    .. math:: \frac{\lambda_F}{N} \sum_{i \in F \setminus C} |\hat F_i - f_i/s_F|
        + \frac{\lambda_{DeNS}}{N} \sum_{i \in C} |\hat\epsilon_i - \epsilon_i/s_N|,
        \qquad N = |F \cup C|

    with F the atoms whose forces count and C the corrupted ones, for ``reduction='joint'``. For
    ``'separate'`` the first sum is divided by \|F \\ C\| and the second by \|C\|. Sums and counts
    run over all ranks.

    Args:
        forces_pred, forces: (n_atoms, 3), predicted and true, divided by s_F.
        noise_pred, noise: (n_atoms, 3), predicted and true, divided by s_N.
        noise_mask: (n_atoms,) bool, the set C.
        free: (n_atoms,) bool, the set F.
        force_coefficient, denoising_coefficient: lambda_F, lambda_DeNS.
        counts: (2,), the divisors of the two sums (:func:`loss_counts`), summed over all
            micro-batches and ranks; None if these atoms are the only ones of this rank.
        error: function of rows of predictions and targets -> (n_atoms,).
    """
    if counts is None:
        counts = sum_over_ranks(loss_counts(noise_mask, free, reduction))
    force_sum = _masked_sum(error, forces_pred, forces, free & ~noise_mask)
    noise_sum = _masked_sum(error, noise_pred, noise, noise_mask)
    means = global_mean(torch.stack([force_sum, noise_sum]), counts)
    return DeNSLoss(force_coefficient * means[0], denoising_coefficient * means[1])


def _masked_sum(error: Callable, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    # set both sides to zero outside the mask before taking the error, so that nothing there, not
    # even NaN, reaches the sum or its gradient
    rows = mask[:, None]
    return error(torch.where(rows, pred, 0), torch.where(rows, target, 0)).sum()
