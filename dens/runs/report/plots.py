"""Curves and an overview of runs as PNGs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dens.runs.figure_data import FigureData
from dens.runs.figures import draw_error_by_sigma, draw_parity, styled
from dens.runs.report.panels import HIDDEN, Line, Panel
from dens.runs.report.runs import Curve, Run

COLORS = ("#1f6fb4", "#c8452d", "#3a8f5c", "#8d5fb0", "#c58a1a", "#4a4f57")
_COLUMNS = 3


def color_of(run: int) -> str:
    """The colour of a run."""
    return COLORS[run % len(COLORS)]


@styled
def draw_group(panels: Sequence[Panel], runs: Sequence[Run]) -> Figure:
    """The curves of one group, three panels a row."""
    rows = -(-len(panels) // _COLUMNS)
    figure, axes = _grid(rows, 2.3)
    for ax, panel in zip(axes, panels, strict=False):
        draw_panel(ax, panel, runs)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.legend(*_entries(axes[0], runs), loc="outside lower center", ncols=min(len(runs) * 2, 6))
    return figure


def _entries(ax: Axes, runs: Sequence[Run]):
    handles = [ax.plot([], [], color=color_of(i), lw=1.6)[0] for i in range(len(runs))]
    handles.append(ax.plot([], [], color="#777777", lw=0.8, alpha=0.6)[0])
    handles.append(ax.plot([], [], color="#777777", lw=1.2, ls=(0, (4, 2)))[0])
    return handles, [*(run.name for run in runs), "training", "forces hidden"]


def draw_panel(ax: Axes, panel: Panel, runs: Sequence[Run]) -> None:
    """A panel's curves on given axes: training thin, validation with markers."""
    for line in panel.lines:
        _plot(ax, line, runs)
    ax.set(xlabel="step", ylabel=panel.unit, title=panel.title.replace(", ", "\n", 1))
    ax.margins(x=0.02)


def _plot(ax: Axes, line: Line, runs: Sequence[Run]) -> None:
    steps, values = line.curve
    color = color_of(line.run)
    if line.kind == "train":
        ax.plot(steps, values, color=color, lw=0.8, alpha=0.55)
    elif line.split == "system":
        ax.plot(steps, values, color=color, lw=1.0)
    else:
        ls = (0, (4, 2)) if line.kind == "hidden" else "-"
        marker = "o" if len(steps) <= 60 else None
        ax.plot(steps, values, color=color, lw=1.4, ls=ls, marker=marker, ms=2.5)


@styled
def draw_overview(runs: Sequence[Run]) -> Figure:
    """Validation errors of all runs, and how the last run with figures denoises."""
    figure, axes = _grid(2, 2.6, columns=4, width=11.0)
    shown = [run for run in runs if run.figures is not None]
    data = FigureData.load(shown[-1].figures / "data.npz") if shown else None
    for ax, (metric, title) in zip(axes, _OVERVIEW, strict=False):
        for i, run in enumerate(runs):
            _plot_validation(ax, run, f"val/{metric}", color_of(i))
        ax.set(xlabel="step", title=title, ylim=(0, None))
    axes[0].legend([run.name for run in runs], loc="best")
    _draw_noise(axes[2], runs)
    _draw_shares(axes[3], runs)
    for ax in axes[4:] if data is None else []:
        ax.set_axis_off()
    if data is not None:
        _draw_data(figure, axes[4:], data)
    return figure


_OVERVIEW = (("forces_mae", "validation force MAE (eV/Å)"), ("energy_mae", "energy MAE (eV)"))


def _plot_validation(ax: Axes, run: Run, name: str, color: str, **style) -> None:
    steps, values = run.curves.get(name, ([], []))
    ax.plot(steps, values, color=color, lw=1.4, marker="o", ms=2.5, **style)


def _draw_noise(ax: Axes, runs: Sequence[Run]) -> None:
    """Variance of the noise explained at the middle level, with and without forces."""
    for i, run in enumerate(runs):
        prefix = "val/denoising_pos_explained_variance/sigma="
        levels = sorted(n for n in run.curves if n.startswith(prefix) and HIDDEN not in n)
        if levels:
            level = levels[len(levels) // 2]
            _plot_validation(ax, run, level, color_of(i), label="forces encoded")
            hidden = {"ls": (0, (4, 2)), "label": "forces hidden"}
            _plot_validation(ax, run, level + HIDDEN, color_of(i), **hidden)
            ax.legend(loc="best")
    ax.set(xlabel="step", title="noise variance explained")


def _draw_shares(ax: Axes, runs: Sequence[Run]) -> None:
    """What each loss term of the last run that measured it contributes to the gradient."""
    prefix = "train/gradient_share_"
    measured = [run for run in runs if any(name.startswith(prefix) for name in run.curves)]
    terms: dict[str, Curve] = {}
    if measured:
        curves = measured[-1].curves
        terms = {n.removeprefix(prefix): c for n, c in curves.items() if n.startswith(prefix)}
    if terms:
        steps = next(iter(terms.values()))[0]
        values = np.array([values for _, values in terms.values()])
        ax.stackplot(steps, values, labels=list(terms), colors=COLORS[: len(terms)], alpha=0.75)
        ax.legend(loc="lower left", frameon=True)
    ax.set(xlabel="step", title="share of the gradient", ylim=(0, 1))


def _draw_data(figure: Figure, axes: Sequence[Axes], data: FigureData) -> None:
    for ax, true, pred, title, unit in (
        (axes[0], data.forces, data.forces_pred, "forces", "eV/Å"),
        (axes[1], data.noise, data.noise_pred, f"noise, sigma = {data.sigma:g} Å", "Å"),
    ):
        cells = draw_parity(ax, true, pred, title, unit)
        figure.colorbar(cells, ax=ax, fraction=0.046, pad=0.03)
    curves = {"forces encoded": data.noise_mae, "forces hidden": data.noise_mae_hidden}
    draw_error_by_sigma(axes[2], data.sigmas, curves)
    axes[2].set(title="noise MAE by level")
    norm = np.linalg.norm(data.noise, axis=1)
    error = np.linalg.norm(data.noise_pred - data.noise, axis=1)
    bins = np.linspace(0, max(norm.max(), error.max()), 30)
    axes[3].hist(norm, bins, color="#8a8f98", alpha=0.6, label="before")
    axes[3].hist(error, bins, color=COLORS[0], alpha=0.6, label="after denoising")
    axes[3].set(xlabel="distance from the original (Å)", ylabel="atoms", title="corrupted atoms")
    axes[3].legend(loc="upper right")


def _grid(rows: int, height: float, columns: int = _COLUMNS, width: float = 9.0):
    figure = Figure(figsize=(width, max(rows, 1) * height + 0.3), layout="constrained", dpi=150)
    axes = np.ravel(figure.subplots(max(rows, 1), columns))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes
