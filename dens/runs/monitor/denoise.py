"""Denoise batches outside of training, for validation and ``dens evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from dens.objective import Host, Objective, Prediction


class Denoised(NamedTuple):
    """A corrupted batch and the model's prediction for it."""

    batch: Any  # positions are the corrupted ones
    prediction: Prediction


@contextmanager
def best_weights(trainer) -> Iterator[None]:
    """Use evaluation mode and the EMA weights, if any, within the block."""
    was_training, ema = trainer.model.training, trainer.ema
    trainer.model.eval()
    if ema:
        ema.store()
        ema.copy_to()
    try:
        yield
    finally:
        if ema:
            ema.restore()
        trainer.model.train(was_training)


@torch.no_grad()
def denoise(
    host: Host,
    objective: Objective,
    batches: Iterable[Any],
    draw: Callable[[int, Any], Any],
) -> Iterator[Denoised]:
    """Corrupt batches and predict their noise; skip batches without a corrupted atom.

    Args:
        host: the trainer whose model is asked.
        objective: how to corrupt, see :meth:`~dens.objective.Objective.probes`.
        batches: PyG batches; they are modified.
        draw: returns the random numbers for the number of a batch and the batch.
    """
    for number, batch in enumerate(batches):
        batch = batch.to(host.device)
        objective.apply(batch, draw(number, batch), host.progress)
        # predict also without a corrupted atom: under DDP it is a collective
        prediction = host.predict_batch(batch)
        if objective.corrupted_atoms(batch).any():
            yield Denoised(batch, prediction)
