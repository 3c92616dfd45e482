"""Denoise batches outside of training, for validation and ``dens evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dens.denoising.config import DeNSConfig
from dens.denoising.corruption import DenoisingFields, Draws, denoising_fields


class Denoised(NamedTuple):
    """A corrupted batch and the model's outputs."""

    batch: Any  # positions are the corrupted ones
    fields: DenoisingFields
    out: dict[str, Tensor]  # in the model's units, not denormalized


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
    trainer,
    batches: Iterable[Any],
    dens: DeNSConfig,
    draw: Callable[[int, Any], Draws | torch.Generator],
    *,
    encode_forces: bool = True,
) -> Iterator[Denoised]:
    """Corrupt batches and predict their noise; skip batches without a corrupted atom.

    Args:
        batches: PyG batches; they are modified.
        dens: how to corrupt, see :func:`~dens.denoising.config.corrupt_all`.
        draw: returns the random numbers for the number of a batch and the batch.
        encode_forces: whether the model sees the forces of the original.
    """
    for number, batch in enumerate(batches):
        batch = batch.to(trainer.device)
        trainer.corrupt_batch(batch, dens, draw(number, batch))
        fields = denoising_fields(batch)
        if not encode_forces:
            batch.noise_forces = torch.zeros_like(batch.noise_forces)
        # forward also without a corrupted atom: under DDP it is a collective
        with torch.autocast("cuda", enabled=trainer.scaler is not None):  # as fairchem evaluates
            out = trainer.forward_micro_batch(batch)
        if fields is not None:
            yield Denoised(batch, fields, out)
