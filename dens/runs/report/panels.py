"""Sort the curves of runs into panels, one for each metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from dens.metrics import GROUPS, Metric, find_metric, hides_forces
from dens.runs.report.runs import Curve, Run


class Line(NamedTuple):
    """A curve of a panel."""

    run: Run
    split: str
    hidden: bool  # whether the forces were hidden from the model
    curve: Curve


class Panel(NamedTuple):
    """The curves of a metric."""

    metric: Metric
    lines: list[Line]


def make_panels(runs: Sequence[Run]) -> dict[str, list[Panel]]:
    """Make the panels of the runs, by group, all in the order in which they are shown."""
    lines: dict[Metric, list[Line]] = {}
    for run in runs:
        for (split, name), curve in run.curves.items():
            line = Line(run, split, hides_forces(name), curve)
            lines.setdefault(find_metric(name), []).append(line)
    panels = [Panel(m, lines[m]) for m in sorted(lines, key=lambda m: m.place)]
    groups = {group: [p for p in panels if p.metric.group == group] for group in GROUPS}
    return {group: members for group, members in groups.items() if members}


def best_of(metric: Metric, curve: Curve) -> tuple[int, float]:
    """Find the step and value at which a metric was best."""
    finite = [(s, v) for s, v in zip(*curve, strict=True) if math.isfinite(v)]
    if not finite:
        return curve[0][-1], math.nan
    best = max if metric.better == "higher" else min
    return best(finite, key=lambda pair: pair[1])
