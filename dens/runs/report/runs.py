"""Read runs from their log folders, sort their curves into panels and compare their settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dens.metrics import GROUPS, Metric, find_metric, hides_forces
from dens.runs.history import read_history

Curve = tuple[list[int], list[float]]  # steps, values
_LOGS = "logs"  # log folder in the folder of a run of fairchem-core 2
COLORS = ("#1f6fb4", "#c8452d", "#3a8f5c", "#8d5fb0", "#c58a1a", "#4a4f57")


@dataclass(frozen=True)
class Run:
    """Run of a report, as read from its log folder."""

    name: str  # unique in the report
    color: str
    folder: Path
    curves: dict[tuple[str, str], Curve]  # by split and metric
    epochs: float | None  # how far training went
    config: dict[str, Any]

    @property
    def figures(self) -> Path | None:
        """The folder of the last figures, if there are any."""
        found = sorted(self.folder.glob("figures/*/data.npz"), key=lambda p: p.parent.name[-8:])
        return found[-1].parent if found else None


class Line(NamedTuple):
    """Curve of a panel: a metric of one run and split."""

    run: Run
    split: str
    hidden: bool  # whether the forces were hidden from the model
    curve: Curve


class Panel(NamedTuple):
    """Panel of a report: the curves of a metric."""

    metric: Metric
    lines: list[Line]


def load_runs(names: Sequence[str | Path]) -> list[Run]:
    """Read runs, given as folders or as ids of runs below ``./logs/*/``.

    Raises:
        ValueError: there is no such run, it is given twice, or it has logged nothing yet.
    """
    folders = [find_run(name) for name in names]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ValueError(f"{folder} is given twice")
    named = [_folder_of_run(folder).name for folder in folders]
    unique = len(set(named)) == len(named)
    labels = named if unique else [str(folder) for folder in folders]
    return [_load(*run) for run in zip(labels, cycle(COLORS), folders, strict=False)]


def find_run(name: str | Path) -> Path:
    """Find the log folder of a run from its path or id.

    The path may also be that of the folder around it, as fairchem-core 2 makes it.
    """
    for folder in (Path(name), Path(name) / _LOGS):
        if (folder / "metrics.jsonl").is_file():
            return folder.resolve()
    found = sorted(path.parent for path in Path("logs").glob(f"*/{name}/metrics.jsonl"))
    if len(found) > 1:
        raise ValueError(f"{name} is ambiguous: {', '.join(map(str, found))}")
    if not found:
        known = sorted(path.parent.name for path in Path("logs").glob("*/*/metrics.jsonl"))
        hint = f"; runs in ./logs: {', '.join(known)}" if known else ""
        raise ValueError(
            f"RUN must be a log folder with metrics.jsonl, or the id of a run in ./logs/*/, "
            f"got {str(name)!r}{hint}"
        )
    return found[0].resolve()


def _folder_of_run(folder: Path) -> Path:
    """Return the folder that is named after a run: its log folder, or that around it."""
    return folder.parent if folder.name == _LOGS else folder


def _load(name: str, color: str, folder: Path) -> Run:
    curves: dict[tuple[str, str], Curve] = {}
    epochs = None
    for line in read_history(folder / "metrics.jsonl"):
        step, split = line.pop("step"), line.pop("split")
        epochs = line.pop("epoch", epochs)
        for metric, value in line.items():
            steps, values = curves.setdefault((split, metric), ([], []))
            steps.append(step)
            values.append(value)
    if not curves:
        raise ValueError(f"{folder / 'metrics.jsonl'} is empty: nothing has been logged yet")
    config = folder / "config.yml"
    read = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return Run(name, color, folder, curves, epochs, read or {})


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


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested config to keys joined by dots; lists of values stay whole."""
    if isinstance(config, list) and any(isinstance(entry, Mapping) for entry in config):
        config = dict(enumerate(config))
    if not isinstance(config, Mapping) or not config:
        return {prefix: config}
    rows: dict[str, Any] = {}
    for key, value in config.items():
        rows |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return rows


def config_diff(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """List the settings that differ, each with its value in every run as YAML writes it."""
    flat = [flatten(run.config) for run in runs]
    names = sorted({name for config in flat for name in config if not name.startswith("cmd.")})
    rows = [(name, [_text(config, name) for config in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _text(config: Mapping[str, Any], name: str) -> str:
    if name not in config:
        return ""
    return yaml.safe_dump(config[name], default_flow_style=True).removesuffix("\n...\n").strip()
