"""Denoising on the validation set: with the same structures and noise at every evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from dens.denoising.config import corrupt_all
from dens.denoising.corruption import Draws, sample_draws_by_structure
from dens.denoising.metrics import NAMES, add, denoising_quality, finish
from dens.metrics import Ratio, sigma_label
from dens.random import Stream
from dens.ranks import sum_over_ranks
from dens.runs.figure_data import FigureData
from dens.runs.monitor.collect import Collector
from dens.runs.monitor.denoise import (
    Denoised,
    best_weights,
    denoise,
    fixed_randomness,
)
from dens.runs.monitor.settings import MonitorSettings


class DenoisingValidation:
    """Measures how well a trainer's model denoises some structures of its validation set.

    Structures lie evenly over the set. A structure's noise is a function of the seed and its
    number: the same at each evaluation, at each noise level but for its size, with and without
    the forces, and on any number of ranks.
    """

    def __init__(self, trainer: Any, settings: MonitorSettings) -> None:
        self.trainer, self.settings = trainer, settings
        self.seed = trainer.config["cmd"]["seed"] or 0
        self.sigmas = settings.sigmas(trainer.dens)

    def __call__(self, split: str) -> tuple[dict[str, float], FigureData | None]:
        """The errors by name, on all ranks; the data of figures, where due, on the master.

        ``.../no_forces`` is measured with the forces hidden from the model.
        """
        dataset = getattr(self.trainer, f"{split}_dataset")
        chosen = self._chosen(len(dataset))
        if self.trainer.dens.prob == 0 or not chosen:
            return {}, None
        collector = Collector(self.trainer) if self._draws_now() else None
        with best_weights(self.trainer), fixed_randomness(self.seed, self.trainer.device):
            errors = self._errors(dataset, chosen, collector)
            if collector is not None:
                collector.add_clean(batch for _, batch in self._batches(dataset, chosen))
        return errors, None if collector is None else collector.gather(self.sigmas, errors)

    def _chosen(self, n: int) -> list[int]:
        """The numbers of this rank's structures, as many on each rank; some twice if too few."""
        rank, size = self.trainer.data_rank(), self.trainer.data_world_size()
        here = -(-self.settings.structures(n, len(self.sigmas)) // size)
        every = np.linspace(0, n - 1, here * size).round().astype(int)
        return every[rank::size].tolist()

    def _draws_now(self) -> bool:
        trainer, every = self.trainer, self.settings.figures_every
        if not every or trainer.is_debug or trainer.train_loader is None:
            return False
        optim = trainer.config["optim"]
        evaluation = trainer.step // optim.get("eval_every", len(trainer.train_loader))
        last = trainer.epoch >= optim["max_epochs"]
        return last or evaluation % every == 0

    def _batches(self, dataset: Any, chosen: list[int]) -> Iterator[tuple[list[int], Any]]:
        optim = self.trainer.config["optim"]
        size = optim.get("eval_batch_size", optim.get("batch_size", 1))
        for start in range(0, len(chosen), size):
            numbers = chosen[start : start + size]
            yield numbers, self.trainer.collater([dataset[i] for i in numbers])

    def _errors(self, dataset: Any, chosen: list[int], collector: Collector | None):
        sums: dict[str, Ratio] = {}
        shown = min(self.sigmas, key=lambda s: abs(s - self.trainer.dens.noise_scale))
        for sigma in self.sigmas:
            for encode_forces in (True, False):
                suffix = f"/{sigma_label(sigma)}" + "/no_forces" * (not encode_forces)
                sums |= {name + suffix: Ratio(0.0, 0) for name in NAMES}
                for done in self._denoised(dataset, chosen, sigma, encode_forces):
                    for name, mean in self._quality(done).items():
                        sums[name + suffix] = add(sums[name + suffix], mean)
                    if collector is not None and encode_forces and sigma == shown:
                        collector.add_corrupted(done)
        totals = torch.tensor(list(sums.values()), dtype=torch.float64)
        totals = sum_over_ranks(totals.to(self.trainer.device)).tolist()
        found = zip(sums, totals, strict=True)
        return {name: finish(name, total, count) for name, (total, count) in found if count}

    def _denoised(self, dataset, chosen, sigma: float, encode_forces: bool) -> Iterator[Denoised]:
        numbers, batches = zip(*self._batches(dataset, chosen), strict=True)
        dens = corrupt_all(self.trainer.dens, batches[0], sigma)

        def draw(i: int, batch: Any) -> Draws:
            streams = [Stream.VALIDATION.generator(self.seed, number) for number in numbers[i]]
            whole = Stream.VALIDATION.generator(self.seed)
            return sample_draws_by_structure(batch.natoms, streams, whole, batch.pos.dtype)

        yield from denoise(self.trainer, batches, dens, draw, encode_forces=encode_forces)

    def _quality(self, done: Denoised) -> dict[str, Ratio]:
        trainer, (batch, fields, out) = self.trainer, done
        return denoising_quality(
            noise_pred=out["noise"] * trainer.dens.noise_scale,
            noise=fields.noise,
            noise_mask=fields.noise_mask,
            energy_pred=trainer._denorm_preds("energy", out["energy"], batch).view(-1),
            energy=batch.energy.view(-1),
            sigma=fields.sigma,
        )
