"""Writes the report."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dens.runs.report.panels import GROUPS, Panel, best_of, make_panels, place_of, title_of, unit_of
from dens.runs.report.plots import color_of, draw_group, draw_overview
from dens.runs.report.runs import Run, config_diff, load_runs

_DASH = {"train": "solid", "val": "solid", "hidden": "dash"}
_CAPTIONS = {
    "forces_parity": "Forces of clean structures",
    "noise_parity": "Noise of corrupted atoms",
    "error_by_sigma": "Noise error at each level",
    "error_by_force": "Errors against the norm of the true force",
    "forces_by_element": "Force error of each element",
}


def write_report(names: Sequence[str | Path], out: Path) -> list[Path]:
    """Write the report of one run or several.

    Args:
        names: log folders, or ids of runs below ``./logs/*/``; the first is what the others are
            compared with.
        out: the HTML file; PNGs go into the folder of the same name with ``_files`` at its end.

    Returns:
        What was written, the HTML file first.

    Raises:
        ValueError: no such run; a package is missing.
    """
    runs = load_runs(names)
    panels = make_panels(runs)
    page = render_page(runs, panels)
    folder = out.with_name(out.stem + "_files")
    folder.mkdir(parents=True, exist_ok=True)
    written = [out]
    out.write_text(page, encoding="utf-8")
    drawings = {"overview": draw_overview(runs)}
    for group in GROUPS:
        members = [panel for panel in panels if panel.group == group]
        if members:
            drawings[group.lower()] = draw_group(members, runs)
    for name, figure in drawings.items():
        figure.savefig(folder / f"{name}.png")
        written.append(folder / f"{name}.png")
    for run in runs:
        for png in _pngs(run):
            copy = folder / f"{run.name.replace('/', '_')}-{png.name}"
            copy.write_bytes(png.read_bytes())
            written.append(copy)
    return written


def render_page(runs: Sequence[Run], panels: Sequence[Panel]) -> str:
    """The HTML of the report."""
    try:
        from jinja2 import Environment, PackageLoader
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError(
            f"dens report needs {error.name}: pip install 'fairchem-dens[report]'"
        ) from error
    template = Environment(
        loader=PackageLoader("dens.runs.report", "."), autoescape=True
    ).get_template("page.html")
    return template.render(
        title=" and ".join(run.name for run in runs),
        runs=[_describe(i, run) for i, run in enumerate(runs)],
        table=_table(runs),
        groups=_groups(panels, runs),
        figures=[(run.name, _embedded(run)) for run in runs if run.figures is not None],
        differences=config_diff(runs) if len(runs) > 1 else [],
        plotly=get_plotlyjs(),
    )


def _describe(i: int, run: Run) -> dict[str, Any]:
    last = max(max(steps) for steps, _ in run.curves.values())
    environment = run.config.get("environment", {})
    packages = environment.get("packages", {})
    facts = {
        "folder": str(run.folder),
        "method": run.config.get("method"),
        "steps": last,
        "epochs": f"{max(run.epochs.values()):.3g}" if run.epochs else None,
        "commit of dens": (environment.get("git") or {}).get("dens"),
        "versions": ", ".join(f"{k} {v}" for k, v in packages.items() if v),
    }
    config = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    shown = {name: value for name, value in facts.items() if value is not None}
    return {"name": run.name, "color": color_of(i), "facts": shown, "config": config}


def _table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each validation metric: best and last value of every run, and the change."""
    names = {tuple(name.split("/", 1)) for run in runs for name in run.curves}
    shown = [(split, metric) for split, metric in names if split not in ("train", "system")]
    rows = []
    for split, metric in sorted(shown, key=lambda pair: (pair[0] != "val", *place_of(pair[1]))):
        name = f"{split}/{metric}"
        hidden = ", forces hidden" * metric.endswith("/no_forces")
        metric = metric.removesuffix("/no_forces")
        cells = [_cell(metric, run.curves.get(name)) for run in runs]
        rows.append(
            {
                "name": f"{title_of(metric)}{hidden}",
                "split": split,
                "unit": unit_of(metric),
                "cells": cells,
                "change": _change(cells),
            }
        )
    return rows


def _cell(metric: str, curve) -> dict[str, Any] | None:
    if curve is None:
        return None
    step, best = best_of(metric, curve)
    return {"best": f"{best:.4g}", "step": step, "last": f"{curve[1][-1]:.4g}", "value": best}


def _change(cells: Sequence[dict[str, Any] | None]) -> str:
    """How the best value of the last run differs from that of the first."""
    if len(cells) < 2 or cells[0] is None or cells[-1] is None or not cells[0]["value"]:
        return ""
    change = (cells[-1]["value"] - cells[0]["value"]) / abs(cells[0]["value"])
    return f"{100 * change:+.1f} %" if math.isfinite(change) else ""


def _groups(panels: Sequence[Panel], runs: Sequence[Run]) -> list[dict[str, Any]]:
    groups = []
    for group in GROUPS:
        members = [_plotly(panel, runs) for panel in panels if panel.group == group]
        if members:
            # "</" would end the script element that holds it
            groups.append({"name": group, "panels": json.dumps(members).replace("</", "<\\/")})
    return groups


def _plotly(panel: Panel, runs: Sequence[Run]) -> dict[str, Any]:
    """A panel as plotly's data and layout."""
    traces = []
    for line in panel.lines:
        steps, values = line.curve
        train = line.kind == "train"
        words = {"train": "training", "val": line.split, "hidden": f"{line.split}, forces hidden"}
        marked = not train and len(steps) <= 200
        traces.append(
            {
                "x": steps,
                "y": [value if math.isfinite(value) else None for value in values],
                "name": f"{runs[line.run].name}: {words[line.kind]}",
                "mode": "lines+markers" if marked else "lines",
                "marker": {"size": 5},
                "opacity": 0.5 if train else 1,
                "line": {
                    "color": color_of(line.run),
                    "width": 1 if train else 2,
                    "dash": _DASH[line.kind],
                },
            }
        )
    return {"data": traces, "title": panel.title, "unit": panel.unit}


def _pngs(run: Run) -> list[Path]:
    return sorted(run.figures.glob("*.png"), key=_rank) if run.figures is not None else []


def _rank(png: Path) -> tuple[int, str]:
    names = list(_CAPTIONS)
    return (names.index(png.stem) if png.stem in names else len(names), png.stem)


def _embedded(run: Run) -> list[tuple[str, str]]:
    """Captions and data URLs of a run's last figures."""
    caption = "A structure before corruption, corrupted and denoised; displacements ten times"
    return [
        (
            _CAPTIONS.get(png.stem, caption),
            "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode(),
        )
        for png in _pngs(run)
    ]
