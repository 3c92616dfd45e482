"""Statistics of labels: moments, and the histogram of the forces on free atoms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

EDGES = np.concatenate([[0.0], 10.0 ** np.arange(-3, 3.5, 0.5), [np.inf]])  # eV/Å
SUSPICIOUS_RMS = 10.0  # eV/Å; trajectories have 0.1 to 3 per component


class Moments:
    """Mean, standard deviation, rms and mean absolute value of numbers given in portions."""

    def __init__(self) -> None:
        # count, mean, sum of squares about it, mean absolute value
        self._portions: list[tuple[int, float, float, float]] = []

    def add(self, values: np.ndarray) -> None:
        """Add numbers, in any shape."""
        if np.size(values):
            mean = float(np.mean(values))
            squares = float(np.square(np.asarray(values) - mean).sum())
            absolute = float(np.abs(values).mean())
            self._portions.append((np.size(values), mean, squares, absolute))

    def result(self) -> dict[str, float]:
        """Return ``mean``, ``std`` (divided by n, not n - 1), ``rms`` and ``mean_abs``: the error
        of a model that predicts zeros. Without numbers, all are 0."""
        if not self._portions:
            return dict.fromkeys(("mean", "std", "rms", "mean_abs"), 0.0)
        count, means, squares, absolute = map(np.array, zip(*self._portions, strict=True))
        mean = float(np.average(means, weights=count))
        # about the common mean: energies of -20,000 eV leave E[x^2] - E[x]^2 no digits
        variance = float((squares + count * (means - mean) ** 2).sum() / count.sum())
        rms = (variance + mean**2) ** 0.5
        mean_abs = float(np.average(absolute, weights=count))
        return {"mean": mean, "std": variance**0.5, "rms": rms, "mean_abs": mean_abs}


class ForceHistogram:
    """Histogram of the norms of forces in half decades of eV/Å."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(EDGES) - 1, dtype=np.int64)
        self.largest = 0.0
        self._squares = 0.0

    def add(self, forces: np.ndarray) -> float:
        """Add the forces on the free atoms of a structure, (n_atoms, 3) eV/Å.

        Returns:
            the largest norm; forces that are not finite do not count.
        """
        norms = np.linalg.norm(forces, axis=1)
        norms = norms[np.isfinite(norms)]
        self.counts += np.histogram(norms, EDGES)[0]
        self._squares += float(np.square(norms).sum())
        largest = float(norms.max(initial=0))
        self.largest = max(self.largest, largest)
        return largest

    @property
    def rms(self) -> float:
        """Root mean square of the components, eV/Å."""
        return (self._squares / 3 / max(1, self.counts.sum())) ** 0.5

    def findings(self) -> list[str]:
        """Describe signs of wrong units."""
        if self.rms <= SUSPICIOUS_RMS:
            return []
        return [f"forces of {self.rms:.3g} eV/Å (rms of a component): kcal/mol/Å or meV/Å?"]

    def to_dict(self) -> dict:
        """Return plain values; the last bin has no upper edge."""
        edges = [float(edge) for edge in EDGES[:-1]]
        return {
            "rms": self.rms,
            "max": self.largest,
            "edges": edges,
            "counts": self.counts.tolist(),
        }

    def text(self) -> str:
        """Format bars for a terminal."""
        used = np.flatnonzero(self.counts)
        lines = [
            f"forces on free atoms: rms of a component {self.rms:.4g}, "
            f"largest {self.largest:.4g} eV/Å"
        ]
        for i in range(used.min(initial=len(EDGES)), used.max(initial=-1) + 1):
            bar = "#" * int(np.ceil(50 * self.counts[i] / self.counts.max()))
            lines.append(f"{EDGES[i]:9.3g} .. {EDGES[i + 1]:<9.3g} {self.counts[i]:9d} {bar}")
        return "\n".join(lines)

    @staticmethod
    def plot(histograms: Mapping[str, ForceHistogram], path: str | Path) -> None:
        """Draw histograms by name into a PNG.

        Raises:
            ValueError: the file cannot be written.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="tight")
        axes = figure.add_subplot()
        edges = np.concatenate([[10**-3.5], EDGES[1:-1], [10**3.5]])
        for name, histogram in histograms.items():
            axes.stairs(histogram.counts, edges, label=name)
        axes.set(xscale="log", yscale="log", xlabel="force on a free atom [eV/Å]", ylabel="atoms")
        axes.legend()
        FigureCanvasAgg(figure)
        try:
            figure.savefig(path, format="png")
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror}") from error
