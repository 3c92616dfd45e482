"""Collect the data of an evaluation's figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dens.metrics import NOISE_MAE, at_level
from dens.objective import Host
from dens.ranks import gather_objects, is_master
from dens.runs.figure_data import DenoisedStructure, FigureData
from dens.runs.monitor.denoise import Denoised

_SHOWN = 2  # structures
_EMPTY = {  # shapes of the arrays without an atom
    **dict.fromkeys(("noise", "noise_pred", "forces", "forces_pred"), (0, 3)),
    **dict.fromkeys(("noise_force_norm", "forces_numbers"), (0,)),
}


class Collector:
    """Collector of this rank's arrays, which :meth:`gather` joins with the other ranks'."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.sigma = host.objective.typical_sigma
        self._parts: dict[str, list[np.ndarray]] = {}
        self._structures: list[DenoisedStructure] = []

    def add_corrupted(self, done: Denoised) -> None:
        """Add a corrupted batch and the noise predicted for it."""
        batch, prediction = done
        mask = self.host.objective.corrupted_atoms(batch)
        pred, true = self.host.objective.noise(prediction.values, batch)
        self.sigma = float(batch.sigma.max())
        self._keep(noise=true[mask], noise_pred=pred[mask])
        if "noise_forces" in batch:
            self._keep(noise_force_norm=batch.noise_forces[mask].norm(dim=-1))
        for i in range(len(batch.natoms))[: _SHOWN - len(self._structures)]:
            here = batch.batch == i
            pos, noise = batch.pos[here], true[here]
            numbers, cell = batch.atomic_numbers[here].long(), batch.cell[i]
            arrays = (numbers, cell, pos - noise, pos, pos - pred[here])
            self._structures.append(DenoisedStructure(*(_array(a) for a in arrays)))

    @torch.no_grad()
    def add_clean(self, batches: Iterable[Any]) -> None:
        """Predict and add the forces of clean batches, for the atoms whose forces count."""
        for batch in batches:
            batch = batch.to(self.host.device)
            values, rows = self.host.predict_batch(batch)
            free = rows["forces"]
            self._keep(
                forces=batch.forces[free],
                forces_pred=values["forces"][free],
                forces_numbers=batch.atomic_numbers[free].long(),
            )

    def _keep(self, **parts: Tensor) -> None:
        for name, value in parts.items():
            self._parts.setdefault(name, []).append(_array(value))

    def gather(self, sigmas: Sequence[float], errors: Mapping[str, float]) -> FigureData | None:
        """Join the data of all ranks on the master; every rank must call it.

        ``errors`` are those of the denoising validation at the noise levels ``sigmas``, Å, by name.
        """
        ranks = gather_objects((self._parts, self._structures))
        if not is_master():
            return None
        arrays = {}
        for name, shape in _EMPTY.items():
            found = [part for parts, _ in ranks for part in parts.get(name, [])]
            arrays[name] = np.concatenate(found or [np.zeros(shape)])

        def curve(hidden: bool) -> np.ndarray:
            names = [at_level(NOISE_MAE, sigma, forces_hidden=hidden) for sigma in sigmas]
            return np.array([errors.get(name, np.nan) for name in names])

        return FigureData(
            sigma=self.sigma,
            sigmas=np.array(sigmas),
            noise_mae=curve(hidden=False),
            noise_mae_hidden=curve(hidden=True),
            structures=[one for _, structures in ranks for one in structures][:_SHOWN],
            **arrays,
        )


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
