"""Write the report of runs: one HTML page and PNGs."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dens.metrics import Metric, find_metric, hides_forces
from dens.runs.figures import CAPTIONS, STRUCTURE_CAPTION
from dens.runs.report.plots import draw_group, draw_overview
from dens.runs.report.runs import Curve, Panel, Run, best_of, config_diff, load_runs, make_panels


def write_report(names: Sequence[str | Path], out: Path) -> list[Path]:
    """Write the report of one run or several.

    Args:
        names: log folders, or ids of runs below ``./logs/*/``; the others are compared with the
            first.
        out: the HTML file; PNGs go into the folder of the same name with ``_files`` at its end.

    Returns:
        The files written, the HTML file first.

    Raises:
        ValueError: there is no such run, or a package is missing.
    """
    runs = load_runs(names)
    groups = make_panels(runs)
    page = _render_page(runs, groups)
    folder = out.with_name(out.stem + "_files")
    folder.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    written = [out]
    drawings = {"overview": draw_overview([p for g in groups.values() for p in g], runs)}
    drawings |= {group.lower(): draw_group(panels, runs) for group, panels in groups.items()}
    for name, figure in drawings.items():
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=150)
    for run in runs:
        for png in _pngs(run):
            written.append(folder / f"{run.name.replace('/', '_')}-{png.name}")
            written[-1].write_bytes(png.read_bytes())
    return written


def _render_page(runs: Sequence[Run], groups: Mapping[str, Sequence[Panel]]) -> str:
    """Render the HTML page of the report."""
    try:
        from jinja2 import Environment, PackageLoader
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError(
            f"dens report needs {error.name}: pip install 'fairchem-dens[report]'"
        ) from error
    environment = Environment(loader=PackageLoader("dens.runs.report", "."), autoescape=True)
    plots = {group: json.dumps([_plot(p) for p in panels]) for group, panels in groups.items()}
    return environment.get_template("page.html").render(
        title=" and ".join(run.name for run in runs),
        runs=[_describe(run) for run in runs],
        table=_table(runs),
        # "</" would end the script element around it
        groups=[{"name": g, "panels": text.replace("</", "<\\/")} for g, text in plots.items()],
        figures=[(run.name, _embedded(run)) for run in runs if run.figures is not None],
        differences=config_diff(runs) if len(runs) > 1 else [],
        plotly=get_plotlyjs(),
    )


def _describe(run: Run) -> dict[str, Any]:
    environment = run.config.get("environment", {})
    packages = environment.get("packages", {})
    facts = {
        "folder": str(run.folder),
        "method": run.config.get("method"),
        "steps": max(steps[-1] for steps, _ in run.curves.values()),
        "epochs": None if run.epochs is None else f"{run.epochs:.3g}",
        "commit of dens": (environment.get("git") or {}).get("dens"),
        "versions": ", ".join(f"{k} {v}" for k, v in packages.items() if v),
    }
    config = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    facts = {name: value for name, value in facts.items() if value is not None}
    return {"name": run.name, "color": run.color, "facts": facts, "config": config}


def _table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Make a row for each validation metric: best and last value of every run, and the change."""
    rows = []
    for split, name in {key: None for run in runs for key in run.curves}:
        if split not in ("train", "system"):
            metric, hidden = find_metric(name), hides_forces(name)
            cells = [_cell(metric, run.curves.get((split, name))) for run in runs]
            row = {
                "name": metric.title + ", forces hidden" * hidden,
                "split": split,
                "unit": metric.unit,
                "cells": cells,
                "change": _change(cells),
            }
            rows.append(((split != "val", split, metric.place, hidden), row))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def _cell(metric: Metric, curve: Curve | None) -> dict[str, Any] | None:
    if curve is None:
        return None
    step, best = best_of(metric, curve)
    return {"best": f"{best:.4g}", "step": step, "last": f"{curve[1][-1]:.4g}", "value": best}


def _change(cells: Sequence[dict[str, Any] | None]) -> str:
    """Compare the best value of the last run with the first run's."""
    if len(cells) < 2 or cells[0] is None or cells[-1] is None or not cells[0]["value"]:
        return ""
    change = (cells[-1]["value"] - cells[0]["value"]) / abs(cells[0]["value"])
    return f"{100 * change:+.1f} %" if math.isfinite(change) else ""


def _plot(panel: Panel) -> dict[str, Any]:
    """Collect the curves of a panel for the page."""
    lines = []
    for run, split, hidden, (steps, values) in panel.lines:
        train = split == "train"
        what = "training" if train else split + ", forces hidden" * hidden
        y = [value if math.isfinite(value) else None for value in values]
        line = {"x": steps, "y": y, "name": f"{run.name}: {what}", "color": run.color}
        lines.append(line | {"train": train, "hidden": hidden})
    return {"title": panel.metric.label, "lines": lines}


def _pngs(run: Run) -> list[Path]:
    """List the last figures of a run, structures last."""
    order = [*CAPTIONS]
    pngs = sorted(run.figures.glob("*.png")) if run.figures is not None else []
    return sorted(pngs, key=lambda png: order.index(png.stem) if png.stem in order else len(order))


def _embedded(run: Run) -> list[tuple[str, str]]:
    """Make captions and data URLs of a run's last figures."""
    images = {png.stem: base64.b64encode(png.read_bytes()).decode() for png in _pngs(run)}
    url = "data:image/png;base64,"
    return [(CAPTIONS.get(name, STRUCTURE_CAPTION), url + data) for name, data in images.items()]
