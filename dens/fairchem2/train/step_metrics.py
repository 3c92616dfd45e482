"""Metrics of a training step, over all ranks, with clean and corrupted structures apart."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dens.metrics import ENERGY_MAE, FORCES_MAE, LOSS_TERM, Ratio
from dens.objective import Objective, Prediction
from dens.ranks import sum_over_ranks

_FRACTION = "corrupted_fraction"


def step_metrics(
    prediction: Prediction, batch: Any, objective: Objective, terms: Mapping[str, Tensor]
) -> dict[str, float]:
    """Measure a step on all ranks, in one collective; every rank must call it.

    Args:
        prediction: in physical units.
        batch: corrupted.
        terms: the weighted terms of this rank's loss, by name.

    Returns:
        The errors of clean structures (``forces_mae``, ``energy_mae``), those of the objective on
        corrupted ones, ``corrupted_fraction`` and the terms as ``loss_...``; only those with at
        least one element on any rank.
    """
    corrupted = int(objective.corrupted_atoms(batch).sum())
    found = {
        _FRACTION: Ratio(corrupted, len(batch.pos)),
        **_clean(prediction, batch, objective.ordinary(batch)),
        **(objective.metrics(prediction, batch) if corrupted else {}),
        **{LOSS_TERM + name: Ratio(value.item(), 1) for name, value in terms.items()},
    }
    names = [FORCES_MAE, ENERGY_MAE, _FRACTION, *objective.metric_names()]
    names += [LOSS_TERM + name for name in terms]  # the same on all ranks
    pairs = [found.get(name, Ratio(0.0, 0)) for name in names]
    numbers = torch.tensor([*chain(*pairs)], dtype=torch.float64, device=batch.pos.device)
    numbers = sum_over_ranks(numbers).tolist()
    means = zip(names, map(Ratio, numbers[::2], numbers[1::2]), strict=True)
    return {name: mean.value for name, mean in means if mean.weight}


def _clean(prediction: Prediction, batch: Any, clean: Tensor) -> dict[str, Ratio]:
    """Measure forces and energies of clean structures."""
    values, rows = prediction
    found = {}
    for name, label, mask in (
        (FORCES_MAE, "forces", rows["forces"] & clean[batch.batch]),
        (ENERGY_MAE, "energy", rows["energy"] & clean),
    ):
        error = (values[label] - batch[label])[mask].abs()
        found[name] = Ratio(error.sum().item(), error.numel())
    return found
