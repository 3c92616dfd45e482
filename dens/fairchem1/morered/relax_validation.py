"""Relax noisy structures of the validation set during training, to see whether that works."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from dens.fairchem1.config.methods.morered import predicted_by
from dens.fairchem1.morered.denoisers import MoreRedDenoiser, Network
from dens.metrics import RELAX_CALLS, RELAXED_RMSD, at_level
from dens.ranks import is_master, sum_over_ranks
from dens.relax.evaluation import measure, noisy_starts
from dens.relax.loop import relax_structures
from dens.relax.structures import Structure


def relaxation_errors(trainer: Any, dataset: Any) -> dict[str, float]:
    """Relax noisy structures of a validation set; return the mean RMSD left, and calls.

    The structures and their noise are the same at each evaluation, on any number of ranks. Every
    rank must call it.

    Args:
        trainer: of MoreRed, with its monitor.
        dataset: of validated records, which are relaxed structures.

    Returns:
        Errors by name at the objective's typical noise level; none where the model lacks the level.
    """
    if {"noise", "time"} - set(predicted_by(trainer.config["model"])):
        return {}
    chosen = sorted(set(trainer.monitor.validation.chosen(len(dataset), n_probes=1)))
    seed, sigma = trainer.config["cmd"]["seed"] or 0, trainer.objective.typical_sigma
    network = Network(trainer._unwrapped_model, seed)
    denoiser = MoreRedDenoiser(network, trainer.objective.config.levels)
    structures = _structures(dataset, chosen, periodic=network.periodic)
    starts = noisy_starts(structures, sigma, seed, chosen) if chosen else []
    with trainer.evaluating():
        relaxed = relax_structures(starts, denoiser, seed=seed, numbers=chosen)
    totals = [0.0, 0.0, 0.0]
    if chosen:
        measured = measure(structures, starts, relaxed)
        totals = [measured.after.sum().item(), measured.calls.sum().item(), len(chosen)]
    totals = torch.tensor(totals, dtype=torch.float64, device=trainer.device)
    after, calls, number = sum_over_ranks(totals).tolist()
    if not number:
        return {}
    errors = {RELAXED_RMSD: after / number, RELAX_CALLS: calls / number}
    errors = {at_level(name, sigma): value for name, value in errors.items()}
    if is_master():
        logging.info(", ".join(f"{name}: {value:.4f}" for name, value in errors.items()))
    return errors


def _structures(dataset: Any, chosen: Sequence[int], *, periodic: bool) -> list[Structure]:
    """Read records as structures; those without a free atom stay as they are."""
    return [
        Structure(
            numbers=torch.as_tensor(data.atomic_numbers).long(),
            pos=data.pos.double(),
            cell=data.cell.view(3, 3).double() if periodic else None,
            fixed=data.fixed != 0,
        )
        for data in dataset.__getitems__(chosen)
    ]
