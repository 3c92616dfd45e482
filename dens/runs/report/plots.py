"""Draw curves and an overview of runs as PNGs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dens.metrics import ENERGY_MAE, FORCES_MAE, GRADIENT_SHARE, METRICS, NOISE_EXPLAINED
from dens.runs import figures
from dens.runs.figure_data import FigureData
from dens.runs.report.runs import COLORS, Line, Panel, Run


@rc_context(figures.STYLE)
def draw_group(panels: Sequence[Panel], runs: Sequence[Run]) -> Figure:
    """Draw the curves of a group, three panels a row: training thin, validation with markers."""
    rows = -(-len(panels) // 3)
    figure, axes = figures.make_figure(9.0, 2.3 * rows + 0.3, rows=rows, columns=3)
    for ax, panel in zip(axes, panels, strict=False):
        _draw_lines(ax, panel.lines)
        title = panel.metric.title.replace(", ", "\n", 1)
        ax.set(xlabel="step", ylabel=panel.metric.unit, title=title)
        ax.margins(x=0.02)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    styles = {run.name: {"color": run.color, "lw": 1.6} for run in runs}
    styles["training"] = {"color": figures.GREY, "lw": 0.8, "alpha": 0.6}
    styles["forces hidden"] = {"color": figures.GREY, "lw": 1.2, "ls": figures.DASHED}
    handles = [axes[0].plot([], [], label=name, **style)[0] for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(runs) * 2, 6))
    return figure


def _draw_lines(ax: Axes, lines: Iterable[Line]) -> None:
    for run, split, hidden, (steps, values) in lines:
        style = {"lw": 1.4, "marker": "o" if len(steps) <= 60 else None, "ms": 2.5}
        if split == "train":
            style = {"lw": 0.8, "alpha": 0.55}
        ax.plot(steps, values, color=run.color, ls=figures.DASHED if hidden else "-", **style)


@rc_context(figures.STYLE)
def draw_overview(panels: Sequence[Panel], runs: Sequence[Run]) -> Figure:
    """Draw the validation errors of all runs, and the figures of the last run that has any."""
    figure, axes = figures.make_figure(12.5, 5.5, rows=2, columns=4)
    for ax, name in zip(axes, (FORCES_MAE, ENERGY_MAE), strict=False):
        for panel in _panels_of(name, panels):
            _draw_lines(ax, [line for line in panel.lines if line.split == "val"])
        ax.set(xlabel="step", title=f"validation {METRICS[name].label}", ylim=(0, None))
    axes[0].legend(
        handles=[axes[0].plot([], [], color=run.color, label=run.name)[0] for run in runs]
    )
    _draw_noise(axes[2], _panels_of(NOISE_EXPLAINED, panels))
    _draw_shares(axes[3], _panels_of(GRADIENT_SHARE, panels), runs)
    folders = [run.figures for run in runs if run.figures is not None]
    if folders:
        _draw_data(axes[4:], FigureData.load(folders[-1] / "data.npz"))
    else:
        for ax in axes[4:]:
            ax.set_axis_off()
    return figure


def _panels_of(name: str, panels: Sequence[Panel]) -> list[Panel]:
    """Select the panels of an entry of the table of metrics: its noise levels or its terms."""
    return [panel for panel in panels if panel.metric.order == METRICS[name].order]


def _draw_noise(ax: Axes, levels: Sequence[Panel]) -> None:
    """Draw the explained variance of the noise at the middle level, with and without forces."""
    if levels:
        _draw_lines(ax, levels[len(levels) // 2].lines)
        ax.plot([], [], color=figures.GREY, label="forces encoded")
        ax.plot([], [], color=figures.GREY, ls=figures.DASHED, label="forces hidden")
        ax.legend(loc="best")
    ax.set(xlabel="step", title=METRICS[NOISE_EXPLAINED].title)


def _draw_shares(ax: Axes, terms: Sequence[Panel], runs: Sequence[Run]) -> None:
    """Draw the share of each loss term in the gradient, for the last run that measured it."""
    if terms:
        last = max((line.run for panel in terms for line in panel.lines), key=runs.index)
        curves = {p.metric.name: li.curve for p in terms for li in p.lines if li.run is last}
        steps = next(iter(curves.values()))[0]
        values = np.array([values for _, values in curves.values()])
        labels = [name.removeprefix(GRADIENT_SHARE) for name in curves]
        ax.stackplot(steps, values, labels=labels, colors=COLORS[: len(labels)], alpha=0.75)
        ax.legend(loc="lower left", frameon=True)
    ax.set(xlabel="step", title="share of the gradient", ylim=(0, 1))


def _draw_data(axes: Sequence[Axes], data: FigureData) -> None:
    """Draw parity, the noise error by level and the distances before and after denoising."""
    figures.draw_parity(axes[0], data, "forces")
    figures.draw_parity(axes[1], data, "noise")
    figures.draw_error_by_sigma(axes[2], data)
    axes[2].set(title="noise MAE by level")
    norm = np.linalg.norm(data.noise, axis=1)
    error = np.linalg.norm(data.noise_pred - data.noise, axis=1)
    bins = np.linspace(0, max(norm.max(), error.max()), 30)
    axes[3].hist(norm, bins, color=figures.GREY, alpha=0.6, label="before")
    axes[3].hist(error, bins, color=figures.BLUE, alpha=0.6, label="after denoising")
    axes[3].set(xlabel="distance from the original (Å)", ylabel="atoms", title="corrupted atoms")
    axes[3].legend(loc="upper right")
