"""Print the evaluations of a run: a line for each, and a table of the first, best and last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from dens.metrics import METRICS, NOISE_MAE, RELAXED_RMSD, Metric, find_metric, hides_forces
from dens.runs.history import plain_numbers
from dens.runs.terminal.output import show

_AT_LEVEL = f"{NOISE_MAE}/sigma="
_LOSS = "loss"


class Evaluations:
    """The evaluations of a run, which are printed when they are complete.

    Args:
        earlier: those that an earlier start of the run has logged, with their ``step``.

    Attributes:
        primary: name of the metric that decides which is the best.
    """

    def __init__(self, earlier: Iterable[dict[str, Any]] = ()) -> None:
        self.primary = ""
        self._done = list(earlier)
        self._present: dict[str, Any] = {}

    def add(self, values: Mapping[str, Any], step: int) -> None:
        """Add logged numbers to the evaluation after a number of steps."""
        if self._present and self._present["step"] != step:
            self.complete()
        self._present |= {**plain_numbers(values), "step": step}

    def complete(self) -> None:
        """Print the present evaluation, if there is one, as a line."""
        line, self._present = self._present, {}
        if not _columns(line):
            return
        again = bool(self._done) and self._done[-1]["step"] == line["step"]
        self._done[len(self._done) - again :] = [line]
        if again:  # a host may evaluate after its last step once more
            return
        values = [_cell(metric, line[name]) for name, metric in _columns(line).items()]
        best = len(self._done) > 1 and self._best() is line
        mark = " (best so far)" if best else ""
        epoch = f"epoch {line['epoch']:.4g}, " if "epoch" in line else ""
        show(f"evaluation at {epoch}step {line['step']:,}: {', '.join(values)}{mark}")

    def _best(self) -> dict[str, Any]:
        sign = -1 if find_metric(self.primary).better == "higher" else 1
        keyed = [line for line in self._done if math.isfinite(line.get(self.primary, math.nan))]
        return min(keyed, key=lambda line: sign * line[self.primary], default=self._done[-1])

    def table(self) -> str:
        """Format the first, the best and the last evaluation, side by side; empty if none was."""
        if not self._done:
            return ""
        best, (first, *_, last) = self._best(), (*self._done, self._done[-1])
        columns = {"first": first, "best": best, "last": last}
        if len(self._done) == 1:
            columns = {"last": last}
        names = _columns(last)
        width = max(len(metric.label) for metric in (*names.values(), _STEP))
        rows = [" " * width + "".join(f"{name:>12}" for name in columns)]
        rows.append(
            f"{_STEP.label:<{width}}" + "".join(f"{c['step']:>12,}" for c in columns.values())
        )
        for name, metric in names.items():
            cells = [f"{c.get(name, math.nan):>12.4g}" for c in columns.values()]
            rows.append(f"{metric.label:<{width}}" + "".join(cells))
        return "\n".join(rows)


_STEP = Metric("step", "evaluation at step")


def _columns(line: Mapping[str, Any]) -> dict[str, Metric]:
    """Choose what is shown of an evaluation: errors with a short title, noise at one level."""
    chosen = [m.name for m in METRICS.values() if m.short and m.name in line and m.name != _LOSS]
    levels = [name for name in line if name.startswith(_AT_LEVEL) and not hides_forces(name)]
    levels.sort(key=lambda name: float(name.removeprefix(_AT_LEVEL)))
    chosen += levels[len(levels) // 2 :][:1]
    chosen += [name for name in line if name.startswith(f"{RELAXED_RMSD}/sigma=")]
    return {name: find_metric(name) for name in [*chosen, *[_LOSS] * (_LOSS in line)]}


def _cell(metric: Metric, value: float) -> str:
    """Format a value with its short title and unit, as ``noise 0.01 Å at sigma 0.10 Å``."""
    base, _, level = metric.name.partition("/sigma=")
    short = METRICS[base].short
    where = f" at sigma {level} Å" if level else ""
    return f"{short} {value:.4g}{f' {metric.unit}' * bool(metric.unit)}{where}"
