"""Measure denoising on the validation set, with the same structures and noise every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dens.denoising.metrics import VALIDATED, noise_quality
from dens.metrics import Ratio, at_level
from dens.objective import Host, Probe
from dens.random import Stream
from dens.ranks import sum_over_ranks
from dens.runs.figure_data import FigureData
from dens.runs.monitor.collect import Collector
from dens.runs.monitor.denoise import Denoised, denoise
from dens.runs.monitor.settings import MonitorSettings


@dataclass(frozen=True)
class Schedule:
    """Which structures of a validation set a rank denoises, and when figures are due."""

    seed: int
    rank: int  # data-parallel: ranks that share a graph share their data
    ranks: int
    batch_size: int
    evaluate_every: int | None  # steps; None: never draw figures


class DenoisingValidation:
    """Denoising errors of a host's model on structures spaced evenly over a validation set.

    A structure's noise is a function of the seed and its number: it is the same at each evaluation,
    with and without the forces and on any number of ranks, and scales with the noise level.
    """

    def __init__(self, host: Host, settings: MonitorSettings, schedule: Schedule) -> None:
        self.host, self.settings, self.schedule = host, settings, schedule
        self.sigmas = settings.sigmas(host.objective)

    def __call__(self, dataset: Any) -> tuple[dict[str, float], FigureData | None]:
        """Return the errors by name, on all ranks, and the master's data for figures if due.

        Each level is measured with what the model is told in training, and with that hidden, if
        the objective tells anything.
        """
        probes = self.host.objective.probes(self.sigmas, dataset[0]) if len(dataset) else []
        chosen = self.chosen(len(dataset), len(probes)) if probes else []
        if not chosen:
            return {}, None
        collector = Collector(self.host) if self._figures_due() else None
        gpus = [self.host.device] if self.host.device.type == "cuda" else []
        with self.host.evaluating(), torch.random.fork_rng(gpus):
            torch.manual_seed(self.schedule.seed)
            errors = self._errors(probes, dataset, chosen, collector)
            if collector is not None and not self.host.objective.makes:  # else without forces
                collector.add_clean(batch for _, batch in self._batches(dataset, chosen))
        return errors, None if collector is None else collector.gather(self.sigmas, errors)

    def chosen(self, n: int, n_probes: int) -> list[int]:
        """Choose this rank's structures, equally many on each rank; repeat some if too few."""
        rank, size = self.schedule.rank, self.schedule.ranks
        here = -(-self.settings.structures(n, n_probes) // size)
        every = np.linspace(0, n - 1, here * size).round().astype(int)
        return every[rank::size].tolist()

    def _figures_due(self) -> bool:
        every, evaluate_every = self.settings.figures_every, self.schedule.evaluate_every
        if not every or evaluate_every is None:
            return False
        progress = self.host.progress
        evaluation = self.host.step // evaluate_every
        return progress.epoch >= progress.max_epochs or evaluation % every == 0

    def _batches(self, dataset: Any, chosen: list[int]) -> Iterator[tuple[list[int], Any]]:
        for start in range(0, len(chosen), self.schedule.batch_size):
            numbers = chosen[start : start + self.schedule.batch_size]
            yield numbers, self.host.collate(dataset.__getitems__(numbers))

    def _errors(
        self, probes: list[Probe], dataset: Any, chosen: list[int], collector: Collector | None
    ) -> dict[str, float]:
        """Denoise in every way that the objective lists; return errors over all ranks."""
        sums: dict[str, Ratio] = {}
        shown = min(self.sigmas, key=lambda s: abs(s - self.host.objective.typical_sigma))
        for probe in probes:
            hidden = probe.hidden
            names = {name: at_level(name, probe.sigma, forces_hidden=hidden) for name in VALIDATED}
            sums |= dict.fromkeys(names.values(), Ratio(0.0, 0))
            for done in self._denoised(probe, dataset, chosen):
                found = self._measure(done)
                for name, full in names.items():
                    sums[full] += found.get(name, Ratio(0.0, 0))
                if collector is not None and not hidden and probe.sigma == shown:
                    collector.add_corrupted(done)
        totals = torch.tensor(list(sums.values()), dtype=torch.float64)
        totals = sum_over_ranks(totals.to(self.host.device)).tolist()
        means = {name: Ratio(*total) for name, total in zip(sums, totals, strict=True)}
        return {name: mean.value for name, mean in means.items() if mean.weight}

    def _denoised(self, probe: Probe, dataset: Any, chosen: list[int]) -> Iterator[Denoised]:
        numbers, batches = zip(*self._batches(dataset, chosen), strict=True)
        seed = self.schedule.seed

        def draw(i: int, batch: Any) -> Any:
            streams = [Stream.VALIDATION.generator(seed, number) for number in numbers[i]]
            return probe.objective.draws(batch, streams, Stream.VALIDATION.generator(seed))

        yield from denoise(self.host, probe.objective, batches, draw)

    def _measure(self, done: Denoised) -> dict[str, Ratio]:
        batch, prediction = done
        objective = self.host.objective
        mask = objective.corrupted_atoms(batch)
        pred, true = objective.noise(prediction.values, batch)
        return noise_quality(pred[mask], true[mask]) | objective.metrics(prediction, batch)
