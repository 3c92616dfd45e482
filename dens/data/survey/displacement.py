"""Measure how far the structures of pairs moved when they were relaxed."""

from __future__ import annotations

import numpy as np
import torch

from dens.data.survey.samples import Sample
from dens.relax.quality import distances

_QUANTILES = {"median": 0.5, "90 %": 0.9, "largest": 1.0}


def displacement(sample: Sample) -> float:
    """Return the root mean square displacement of free atoms between a structure and its start, Å.

    See :func:`dens.relax.quality.displacement` for what counts as rigid motion.
    """
    pos, start = (torch.as_tensor(x, dtype=torch.float64) for x in (sample.pos, sample.start))
    cell = None if sample.cell is None else torch.as_tensor(sample.cell, dtype=torch.float64)[None]
    batch, natoms = torch.zeros(len(pos), dtype=torch.long), torch.tensor([len(pos)])
    fixed = torch.as_tensor(~sample.free)
    return distances(start, pos, batch, natoms, fixed=fixed, cell=cell).rmsd.item()


class Displacements:
    """Displacements of the pairs of a data set; structures without a start do not count."""

    def __init__(self) -> None:
        self._found: list[tuple[float, str]] = []

    def add(self, sample: Sample) -> None:
        """Add a structure with a free atom."""
        if sample.start is not None and sample.free.any():
            self._found.append((displacement(sample), sample.where))

    def __len__(self) -> int:
        return len(self._found)

    def text(self, structures: int) -> str:
        """Format one line for a terminal, out of so many structures."""
        values = [value for value, _ in self._found]
        shown = "  ".join(f"{n} {np.quantile(values, q):.4g}" for n, q in _QUANTILES.items())
        still = sum(value < 1e-4 for value in values)
        same = f"; {still} did not move" if still else ""
        return (
            f"pairs: {len(values)} of {structures} structures have a start; rms displacement of "
            f"free atoms [Å]: {shown} ({max(self._found)[1]}){same}"
        )
