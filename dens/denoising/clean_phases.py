"""Phases of training without corruption: when DeNS begins and ends."""

from __future__ import annotations

import math

from dens.denoising.config import LONGEST_AUTO, DeNSConfig
from dens.objective import Progress

# `clean_end: auto` (docs/results.md): all of fewer epochs than FEW, of fewer structures than MANY;
# else up to so many epochs half of them, from so many on a fifth
FEW, MANY = 16, 100_000
SHORT, LONG = (35, LONGEST_AUTO), (100, 0.2)
_ROUNDING = 1e-9  # of a fraction of training


def clean_end(dens: DeNSConfig, epochs: float, structures: int) -> float:
    """Return the fraction of training at its end in which nothing is corrupted.

    With ``auto`` it falls with the number of epochs: half of training up to 35 epochs, a fifth from
    100 on, and between them linearly in the logarithm. Fewer than 16 epochs of fewer than
    100,000 structures are clean throughout: there DeNS gained nothing.

    Args:
        epochs: number of epochs of the whole training.
        structures: number of structures in the training set.

    >>> from dens.denoising.config import parse_config
    >>> settings = {"prob": 0.5, "sigma": 0.1, "denoising_coefficient": 1, "clean_end": "auto"}
    >>> dens = parse_config(settings)
    >>> [round(clean_end(dens, epochs, 950), 2) for epochs in (15, 16, 35, 68, 100, 1500)]
    [1.0, 0.5, 0.5, 0.31, 0.2, 0.2]
    >>> clean_end(dens, 2, 2_000_000)
    0.5
    """
    if not isinstance(dens.clean_end, str):
        return dens.clean_end
    if epochs < FEW and structures < MANY:
        return 1.0
    (few, most), (many, least) = SHORT, LONG
    place = math.log(max(epochs, few) / few) / math.log(many / few)
    return most + (least - most) * min(place, 1.0)


def corrupted_epochs(dens: DeNSConfig, epochs: float, structures: int) -> tuple[float, float]:
    """Return where corruption begins and ends, in epochs, with the arguments of `clean_end`.

    Both are equal where nothing is corrupted.
    """
    begin, end = dens.clean_start * epochs, (1 - clean_end(dens, epochs, structures)) * epochs
    if dens.early_epochs is not None:
        end = min(end, dens.early_epochs)
    return begin, max(begin, end)


def describe_phases(dens: DeNSConfig, epochs: float, structures: int) -> str:
    """Say in which epochs structures are corrupted, with the arguments of `clean_end`."""
    begin, end = corrupted_epochs(dens, epochs, structures)
    if begin == end:
        automatic = isinstance(dens.clean_end, str)
        why = "clean_end: auto" if automatic else "clean_start, clean_end, early_epochs"
        return f"in none of {epochs:.3g} epochs ({why})"
    return f"from epoch {begin:.3g} to {end:.3g} of {epochs:.3g}"


def probability(dens: DeNSConfig, progress: Progress) -> float:
    """Return p_DeNS at a step: ``prob`` in the part of training with corruption, else 0."""
    if dens.early_epochs is not None and progress.epochs_done >= dens.early_epochs:
        return 0.0
    begin, end = dens.clean_start, 1 - clean_end(dens, progress.max_epochs, progress.structures)
    within = begin + _ROUNDING < progress.fraction <= end + _ROUNDING
    return dens.prob if within or (begin == 0 and end == 1) else 0.0


def is_scheduled(dens: DeNSConfig) -> bool:
    """Tell whether the probability changes in training."""
    return dens.early_epochs is not None or dens.clean_start > 0 or dens.clean_end != 0


def at(dens: DeNSConfig, progress: Progress) -> DeNSConfig:
    """Return the settings as they hold at a step: with the probability of that step."""
    prob = probability(dens, progress)
    return dens if prob == dens.prob else dens.model_copy(update={"prob": prob})
