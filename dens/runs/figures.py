"""The figures of an evaluation, drawn from arrays.

Needs matplotlib, which ASE brings. Figures are made without pyplot, so that nothing global is
touched and no window opens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from ase.utils import rotate
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from dens.runs.figure_data import DenoisedStructure, FigureData

INK, BLUE, RED, GREY = "#222222", "#1f6fb4", "#c8452d", "#8a8f98"
_STYLE = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Give what a function draws the style of all figures here."""

    @functools.wraps(draw)
    def in_style(*args, **kwargs) -> Figure:
        with rc_context(_STYLE):
            return draw(*args, **kwargs)

    return in_style


def draw_all(data: FigureData) -> dict[str, Figure]:
    """Every figure of which there are data, by name."""
    figures = {}
    if len(data.noise):
        title = f"noise, sigma = {data.sigma:g} Å"
        figures["noise_parity"] = parity(data.noise, data.noise_pred, title, "Å")
        figures["error_by_sigma"] = error_by_sigma(
            data.sigmas, {"forces encoded": data.noise_mae, "forces hidden": data.noise_mae_hidden}
        )
    if len(data.forces):
        figures["forces_parity"] = parity(data.forces, data.forces_pred, "forces", "eV/Å")
        error = np.abs(data.forces_pred - data.forces).mean(axis=1)
        figures["forces_by_element"] = error_by_element(data.forces_numbers, error)
    if len(data.noise) and len(data.forces):
        figures["error_by_force"] = error_by_force(data)
    for i, triple in enumerate(data.structures):
        figures[f"structure_{i}"] = stages(triple)
    return figures


@styled
def parity(true: NDArray, pred: NDArray, title: str, unit: str) -> Figure:
    """Predicted against true components, as the density of points: arrays of equal shape."""
    figure, ax = _figure(3.5, 3.2)
    cells = draw_parity(ax, true, pred, title, unit)
    figure.colorbar(cells, ax=ax, label="number of components", fraction=0.046, pad=0.03)
    return figure


def draw_parity(ax: Axes, true: NDArray, pred: NDArray, title: str, unit: str) -> PolyCollection:
    """The same on given axes; returns the cells, for a colour bar."""
    x, y = np.ravel(true), np.ravel(pred)
    largest = max(float(np.quantile(np.abs(np.concatenate([x, y])), 0.999)), 1e-12)
    box = (-largest, largest, -largest, largest)
    cells = ax.hexbin(x, y, gridsize=45, extent=box, mincnt=1, bins="log", cmap="viridis", lw=0)
    ax.plot(box[:2], box[:2], color=INK, lw=0.8, ls=(0, (4, 3)))
    error = y - x
    spread = np.square(x - x.mean()).sum()
    r2 = 1 - np.square(error).sum() / spread if spread > 0 else float("nan")
    note = f"MAE {np.abs(error).mean():.3g} {unit}\nRMSE {np.sqrt(np.square(error).mean()):.3g} "
    note += f"{unit}\nR² {r2:.3f}"
    ax.text(0.04, 0.96, note, transform=ax.transAxes, va="top", fontsize=8)
    ax.set(xlabel=f"true ({unit})", ylabel=f"predicted ({unit})", title=title, aspect="equal")
    ax.set(xlim=box[:2], ylim=box[2:])
    return cells


@styled
def error_by_sigma(sigmas: NDArray, curves: Mapping[str, NDArray]) -> Figure:
    """Mean absolute error of the noise at each level, beside that of predicting none."""
    figure, ax = _figure(3.5, 2.8)
    draw_error_by_sigma(ax, sigmas, curves)
    return figure


def draw_error_by_sigma(ax: Axes, sigmas: NDArray, curves: Mapping[str, NDArray]) -> None:
    """The same on given axes."""
    zeros = np.asarray(sigmas) * np.sqrt(2 / np.pi)
    ax.plot(sigmas, zeros, color=GREY, ls=(0, (4, 3)), lw=1, label="no noise predicted")
    for (name, error), color, marker in zip(curves.items(), (BLUE, RED), "os", strict=False):
        ax.plot(sigmas, error, color=color, marker=marker, ms=4, lw=1.4, label=name)
    ax.set(xlabel="sigma (Å)", ylabel="noise MAE (Å)")
    ax.set(xlim=(0, None), ylim=(0, None))
    ax.legend(loc="upper left")


@styled
def error_by_force(data: FigureData) -> Figure:
    """Errors of forces and of noise in bins of the true force's norm: median and quartiles."""
    figure, (left, right) = _figure(6.4, 2.8, 2)
    norm = np.linalg.norm(data.forces, axis=1)
    error = np.linalg.norm(data.forces_pred - data.forces, axis=1)
    _binned(left, norm, error, BLUE)
    left.set(xlabel="|F| (eV/Å)", ylabel="force error (eV/Å)", title="clean structures")
    error = np.linalg.norm(data.noise_pred - data.noise, axis=1)
    _binned(right, data.noise_force_norm, error, RED)
    right.set(xlabel="|F| of the original (eV/Å)", ylabel="noise error (Å)")
    right.set(title=f"corrupted atoms, sigma = {data.sigma:g} Å")
    return figure


def _binned(ax: Axes, x: NDArray, y: NDArray, color: str, n_bins: int = 12) -> None:
    edges = np.unique(np.quantile(x, np.linspace(0, 1, min(n_bins, max(len(x) // 8, 1)) + 1)))
    if len(edges) < 2:
        edges = np.array([edges[0], edges[0] + 1e-12])
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
    groups = [place == i for i in range(len(edges) - 1)]
    center = [np.median(x[g]) for g in groups if g.any()]
    low, middle, high = (
        [np.quantile(y[g], q) for g in groups if g.any()] for q in (0.25, 0.5, 0.75)
    )
    ax.fill_between(center, low, high, color=color, alpha=0.2, lw=0, label="quartiles")
    ax.plot(center, middle, color=color, lw=1.4, marker="o", ms=3, label="median")
    ax.set(xlim=(0, None), ylim=(0, None))
    ax.legend(loc="upper left")


@styled
def error_by_element(numbers: NDArray, error: NDArray) -> Figure:
    """Mean force error of each element, with the number of its atoms: (n_atoms,) each."""
    elements, counts = np.unique(numbers, return_counts=True)
    mean = [error[numbers == z].mean() for z in elements]
    figure, ax = _figure(max(3.5, 1.0 + 0.28 * len(elements)), 2.8)
    bars = ax.bar(range(len(elements)), mean, color=BLUE, width=0.7)
    if len(elements) <= 24:
        ax.bar_label(bars, [str(n) for n in counts], fontsize=7, color=GREY, padding=1)
    ax.set_xticks(range(len(elements)), [chemical_symbols[z] for z in elements])
    ax.set(ylabel="force MAE (eV/Å)", xlabel="element (number of atoms above)")
    ax.margins(y=0.12)
    return figure


@styled
def stages(triple: DenoisedStructure) -> Figure:
    """A structure before corruption, corrupted and denoised, seen from the side.

    Arrows show how far atoms are from where they were, ten times as long.
    """
    figure, axes = _figure(6.4, 2.9, 3)
    turn = rotate("-80x,12y,0z")
    moved = np.any(triple.corrupted != triple.pos, axis=1)
    for ax, (name, atoms), color in zip(
        axes, triple.atoms().items(), (INK, RED, BLUE), strict=True
    ):
        _draw_atoms(ax, triple.numbers, atoms.positions @ turn)
        off = (atoms.positions - triple.pos)[moved]
        start, arrows = (triple.pos @ turn)[moved], _MAGNIFIED * off @ turn
        ax.update_datalim((start + arrows)[:, :2])
        if name != "original" and len(off):  # small structures may have no atom in C
            ax.quiver(
                *start.T[:2], *arrows.T[:2], color=color, angles="xy", scale_units="xy", scale=1,
                width=0.012, zorder=1e6,
            )  # fmt: skip
            name = f"{name}: {np.linalg.norm(off, axis=1).mean():.3f} Å off"
        ax.autoscale_view()
        ax.set(title=name, aspect="equal")
        ax.set_axis_off()
    return figure


_MAGNIFIED = 10


def _draw_atoms(ax: Axes, numbers: NDArray, seen: NDArray) -> None:
    """Atoms as discs, nearer ones in front: positions (n_atoms, 3), Å, z towards the viewer."""
    for z, (x, y, depth) in zip(numbers, seen, strict=True):
        disc = Circle(
            (x, y), 0.75 * covalent_radii[z], fc=(*jmol_colors[z], 0.85), ec=INK, lw=0.6,
            zorder=10 + depth,
        )  # fmt: skip
        ax.add_patch(disc)


def _figure(width: float, height: float, columns: int = 1):
    """A figure in inches, with one set of axes or a row of them."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=160)
    axes = figure.subplots(1, columns)
    for ax in np.ravel(axes):
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes
