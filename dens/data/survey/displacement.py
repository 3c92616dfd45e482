"""Measure how far the structures of pairs moved when they were relaxed."""

from __future__ import annotations

import numpy as np
from ase.geometry import find_mic

from dens.data.survey.samples import Sample

_QUANTILES = {"median": 0.5, "90 %": 0.9, "largest": 1.0}


def displacement(sample: Sample) -> float:
    r"""Return the root mean square displacement between a structure and its start, in Å.

    .. math:: d = \min_R \sqrt{\tfrac1n \sum_i |p_i - R q_i|^2}

    over the free atoms: about the common centre unless an atom is fixed, and after the best
    rotation R of open structures; across the faces of a cell by the nearest image.
    """
    pos, start = sample.pos[sample.free], sample.start[sample.free]
    if sample.cell is not None:
        start = pos + find_mic(start - pos, sample.cell)[0]
    if not sample.free.all():
        return _rms(pos - start)
    pos, start = pos - pos.mean(axis=0), start - start.mean(axis=0)
    if sample.cell is not None:
        return _rms(pos - start)
    u, _, v = np.linalg.svd(start.T @ pos)  # Kabsch: doi:10.1107/S0567739476001873
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ v)) or 1.0])
    return _rms(pos - start @ u @ flip @ v)


def _rms(steps: np.ndarray) -> float:
    return float(np.sqrt(np.square(steps).sum(axis=1).mean()))


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
