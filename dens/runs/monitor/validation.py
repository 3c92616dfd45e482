"""Measure denoising on the validation set, with the same structures and noise every time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from dens.denoising.config import corrupt_all
from dens.denoising.corruption import Draws, sample_draws_by_structure
from dens.denoising.metrics import VALIDATED, noise_quality
from dens.metrics import Ratio, at_level
from dens.random import Stream
from dens.ranks import sum_over_ranks
from dens.runs.figure_data import FigureData
from dens.runs.monitor.collect import Collector
from dens.runs.monitor.denoise import Denoised, best_weights, denoise
from dens.runs.monitor.settings import MonitorSettings


class DenoisingValidation:
    """Denoising errors of a trainer's model on structures spaced evenly over its validation set.

    A structure's noise is a function of the seed and its number: it is the same at each evaluation,
    with and without the forces and on any number of ranks, and scales with the noise level.
    """

    def __init__(self, trainer: Any, settings: MonitorSettings) -> None:
        self.trainer, self.settings = trainer, settings
        self.seed = trainer.config["cmd"]["seed"] or 0
        self.sigmas = settings.sigmas(trainer.dens)

    def __call__(self, split: str) -> tuple[dict[str, float], FigureData | None]:
        """Return the errors by name, on all ranks, and the master's data for figures if due.

        Each level is measured with the forces encoded and with the forces hidden.
        """
        dataset = getattr(self.trainer, f"{split}_loader").dataset  # of validated records
        chosen = self._chosen(len(dataset))
        if self.trainer.dens.prob == 0 or not chosen:
            return {}, None
        collector = Collector(self.trainer) if self._figures_due() else None
        gpus = [self.trainer.device] if self.trainer.device.type == "cuda" else []
        with best_weights(self.trainer), torch.random.fork_rng(gpus):
            torch.manual_seed(self.seed)
            errors = self._errors(dataset, chosen, collector)
            if collector is not None:
                collector.add_clean(batch for _, batch in self._batches(dataset, chosen))
        return errors, None if collector is None else collector.gather(self.sigmas, errors)

    def _chosen(self, n: int) -> list[int]:
        """Choose this rank's structures, equally many on each rank; repeat some if too few."""
        rank, size = self.trainer.data_rank(), self.trainer.data_world_size()
        here = -(-self.settings.structures(n, len(self.sigmas)) // size)
        every = np.linspace(0, n - 1, here * size).round().astype(int)
        return every[rank::size].tolist()

    def _figures_due(self) -> bool:
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
            yield numbers, self.trainer.collater(dataset.__getitems__(numbers))

    def _errors(
        self, dataset: Any, chosen: list[int], collector: Collector | None
    ) -> dict[str, float]:
        """Denoise at every level, with forces encoded and hidden; return errors over all ranks."""
        sums: dict[str, Ratio] = {}
        shown = min(self.sigmas, key=lambda s: abs(s - self.trainer.dens.noise_scale))
        for sigma in self.sigmas:
            for hidden in (False, True):
                names = {name: at_level(name, sigma, forces_hidden=hidden) for name in VALIDATED}
                sums |= dict.fromkeys(names.values(), Ratio(0.0, 0))
                for done in self._denoised(dataset, chosen, sigma, encode_forces=not hidden):
                    found = self._measure(done)
                    for name, full in names.items():
                        sums[full] += found.get(name, Ratio(0.0, 0))
                    if collector is not None and not hidden and sigma == shown:
                        collector.add_corrupted(done)
        totals = torch.tensor(list(sums.values()), dtype=torch.float64)
        totals = sum_over_ranks(totals.to(self.trainer.device)).tolist()
        means = {name: Ratio(*total) for name, total in zip(sums, totals, strict=True)}
        return {name: mean.value for name, mean in means.items() if mean.weight}

    def _denoised(self, dataset, chosen, sigma: float, encode_forces: bool) -> Iterator[Denoised]:
        numbers, batches = zip(*self._batches(dataset, chosen), strict=True)
        dens = corrupt_all(self.trainer.dens, batches[0], sigma)

        def draw(i: int, batch: Any) -> Draws:
            streams = [Stream.VALIDATION.generator(self.seed, number) for number in numbers[i]]
            whole = Stream.VALIDATION.generator(self.seed)
            return sample_draws_by_structure(batch.natoms, streams, whole, batch.pos.dtype)

        yield from denoise(self.trainer, batches, dens, draw, encode_forces=encode_forces)

    def _measure(self, done: Denoised) -> dict[str, Ratio]:
        batch, fields, out = done
        mask, scale = fields.noise_mask, self.trainer.dens.noise_scale
        quality = noise_quality(out["noise"][mask] * scale, fields.noise[mask])
        return quality | self.trainer.denoising_metrics(out, batch, fields)
