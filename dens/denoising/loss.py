"""DeNS loss: errors of forces and noise, averaged over the atoms of all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dens.objective import Target
from dens.ranks import global_mean, sum_over_ranks


class DeNSLoss(NamedTuple):
    """The weighted terms of forces and noise, scalars; the loss is their sum plus the energy's."""

    forces: Tensor
    noise: Tensor


def l2_error(pred: Tensor, target: Tensor) -> Tensor:
    """Compute the Euclidean distance of each row: (n, 3), (n, 3) -> (n,)."""
    return torch.linalg.vector_norm(pred - target, dim=-1)


def denoising_targets(
    forces: Target, noise: Tensor, noise_mask: Tensor, coefficient: float, reduction: str
) -> tuple[Target, Target]:
    r"""Split the force target into forces of clean atoms and noise of corrupted ones.

    Args:
        forces: the target of all atoms whose forces count, the set F.
        noise: (n_atoms, 3), divided by s_N.
        noise_mask: (n_atoms,) bool, the set C; of it the atoms with this force label are taken.
        coefficient: lambda_DeNS.
        reduction: ``joint``, both means run over F u C, or ``separate``, over F \\ C and over C.
    """
    if forces.present is not None:
        noise_mask = noise_mask & forces.present
    joint = forces.rows | noise_mask if reduction == "joint" else None
    clean = replace(forces, rows=forces.rows & ~noise_mask, mean_over=joint)
    corrupted = replace(clean, name="noise", value=noise, rows=noise_mask, weight=coefficient)
    return clean, corrupted


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
    error: Callable[[Tensor, Tensor], Tensor] = l2_error,
) -> DeNSLoss:
    r"""Compute the loss for forces of clean atoms and noise of corrupted ones (arXiv:2403.09549).

    .. math:: \frac{\lambda_F}{N} \sum_{i \in F \setminus C} |\hat F_i - f_i/s_F|
        + \frac{\lambda_{DeNS}}{N} \sum_{i \in C} |\hat\epsilon_i - \epsilon_i/s_N|,
        \qquad N = |F \cup C|

    with F the atoms whose forces count and C the corrupted ones, for ``reduction='joint'``. For
    ``'separate'`` the first sum is divided by \|F \\ C\| and the second by \|C\|. Sums and counts
    run over all ranks.

    Three atoms: a force that is off by 1, one with noise that is off by 2, and a fixed one.

    >>> zeros, mask = torch.zeros(3, 3), torch.tensor([False, True, False])
    >>> off = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [5.0, 0, 0]])
    >>> loss = dens_loss(
    ...     forces_pred=off, forces=zeros, noise_pred=off, noise=zeros, noise_mask=mask,
    ...     free=torch.tensor([True, True, False]), force_coefficient=1, denoising_coefficient=10,
    ... )
    >>> [term.item() for term in loss]
    [0.5, 10.0]

    Args:
        forces_pred, forces: (n_atoms, 3), predicted and true, divided by s_F.
        noise_pred, noise: (n_atoms, 3), predicted and true, divided by s_N.
        noise_mask: (n_atoms,) bool, the set C.
        free: (n_atoms,) bool, the set F.
        force_coefficient, denoising_coefficient: lambda_F, lambda_DeNS.
        error: function of rows of predictions and targets -> (n_atoms,).
    """
    base = Target("forces", forces, free, "atom", force_coefficient, error)
    targets = denoising_targets(base, noise, noise_mask, denoising_coefficient, reduction)
    counts = sum_over_ranks(torch.stack([target.count for target in targets]))
    outputs = (forces_pred, noise_pred)
    terms = (
        target.weight * global_mean(target.total(output), count)
        for target, output, count in zip(targets, outputs, counts, strict=True)
    )
    return DeNSLoss(*terms)
