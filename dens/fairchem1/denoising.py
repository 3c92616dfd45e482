"""Denoising outside of training: what ``dens evaluate`` and a run's validation have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from fairchem.core.common import distutils, gp_utils
from torch import Tensor

from dens.config import DeNSConfig
from dens.corruption import DenoisingFields, Draws, denoising_fields


class Denoised(NamedTuple):
    """A corrupted batch and what the model makes of it."""

    batch: Any  # positions are the corrupted ones
    fields: DenoisingFields
    out: dict[str, Tensor]  # the model's outputs, not denormalized


@contextmanager
def best_weights(trainer) -> Iterator[None]:
    """Evaluation mode, with the EMA weights where there are some; both undone afterwards."""
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


@contextmanager
def fixed_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own generators start from ``seed``, and are as before afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def always(dens: DeNSConfig, data: Any, sigma: float | None = None) -> DeNSConfig:
    """Settings under which every structure is corrupted that ``dens`` does not exclude.

    Args:
        dens: the settings of training.
        data: a structure; exclusions by what such data do not tell are left out.
        sigma: a noise level, Å; None for that or those of training.
    """
    change: dict[str, Any] = {"prob": 1.0, "early_epochs": None}
    if dens.exclude_md:
        change["exclude_md"] = "if_marked"
    if getattr(data, "stress", None) is None:
        change["max_stress_norm"] = None
    if sigma is not None:
        change |= {"sigma": sigma, "sigma_low": None, "sigma_high": None, "num_sigmas": None}
    return dens.model_copy(update=change)


@torch.no_grad()
def denoise(
    trainer,
    batches: Iterable[Any],
    dens: DeNSConfig,
    draw: Callable[[int, Any], Draws | torch.Generator],
    *,
    encode_forces: bool = True,
) -> Iterator[Denoised]:
    """Corrupt batches and predict their noise; batches without a corrupted atom are left out.

    Args:
        batches: PyG batches; they are changed.
        dens: how to corrupt, see :func:`always`.
        draw: the random numbers, from the number of a batch and the batch.
        encode_forces: False hides the forces of the original from the model.
    """
    for number, batch in enumerate(batches):
        batch = batch.to(trainer.device)
        trainer.corrupt_batch(batch, dens, draw(number, batch))
        fields = denoising_fields(batch)
        if not encode_forces:
            batch.noise_forces = torch.zeros_like(batch.noise_forces)
        # forward also without a corrupted atom: under DDP it is a collective
        with torch.autocast("cuda", enabled=trainer.scaler is not None):  # as fairchem evaluates
            out = trainer.forward_piece(batch)
        if fields is not None:
            yield Denoised(batch, fields, out)


def data_rank_and_size() -> tuple[int, int]:
    """This rank's place among those with data of their own, and their number."""
    if gp_utils.initialized():
        return gp_utils.get_dp_rank(), gp_utils.get_dp_world_size()
    return distutils.get_rank(), distutils.get_world_size()
