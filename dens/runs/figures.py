"""Draw the figures of an evaluation from arrays.

Needs matplotlib, which ASE brings. Figures are made without pyplot, which would keep global state
and open windows.
"""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from ase.utils import rotate
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from dens.runs.figure_data import DenoisedStructure, FigureData

INK, BLUE, RED, GREY = "#222222", "#1f6fb4", "#c8452d", "#8a8f98"
DASHED = (0, (4, 2))
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
CAPTIONS = {  # of the figures, in the order in which a report shows them
    "forces_parity": "Forces of clean structures",
    "noise_parity": "Noise of corrupted atoms",
    "error_by_sigma": "Noise error at each level",
    "error_by_force": "Errors against the norm of the true force",
    "forces_by_element": "Force error of each element",
}
_MAGNIFIED = 10  # arrows of displacements
STRUCTURE_CAPTION = (
    f"A structure before corruption, corrupted and denoised; displacements {_MAGNIFIED} times"
)


@rc_context(STYLE)
def draw_all(data: FigureData) -> dict[str, Figure]:
    """Draw every figure for which there are data, by name."""
    figures = {}

    def make(name: str, width: float, height: float, columns: int = 1):
        figures[name], axes = make_figure(width, height, columns=columns)
        return axes if columns > 1 else axes[0]

    if len(data.noise):
        draw_parity(make("noise_parity", 3.5, 3.2), data, "noise")
        draw_error_by_sigma(make("error_by_sigma", 3.5, 2.8), data)
    if len(data.forces):
        draw_parity(make("forces_parity", 3.5, 3.2), data, "forces")
        width = max(3.5, 1.0 + 0.28 * len(np.unique(data.forces_numbers)))
        _draw_error_by_element(make("forces_by_element", width, 2.8), data)
    if len(data.noise) and len(data.forces):
        _draw_error_by_force(make("error_by_force", 6.4, 2.8, 2), data)
    for i, structure in enumerate(data.structures):
        _draw_stages(make(f"structure_{i}", 6.4, 2.9, 3), structure)
    return figures


def make_figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1
) -> tuple[Figure, NDArray]:
    """Make a figure of a size in inches, and the list of its axes row by row."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=160)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def draw_parity(ax: Axes, data: FigureData, name: str) -> None:
    """Draw the density of predicted against true components of the ``noise`` or ``forces``."""
    true, pred = getattr(data, name), getattr(data, f"{name}_pred")
    unit = {"noise": "Å", "forces": "eV/Å"}[name]
    title = f"noise, sigma = {data.sigma:g} Å" if name == "noise" else name
    x, y = np.ravel(true), np.ravel(pred)
    largest = max(float(np.quantile(np.abs(np.concatenate([x, y])), 0.999)), 1e-12)
    box = (-largest, largest, -largest, largest)
    cells = ax.hexbin(x, y, gridsize=45, extent=box, mincnt=1, bins="log", cmap="viridis", lw=0)
    ax.figure.colorbar(cells, ax=ax, label="number of components", fraction=0.046, pad=0.03)
    ax.plot(box[:2], box[:2], color=INK, lw=0.8, ls=DASHED)
    error = y - x
    spread = np.square(x - x.mean()).sum()
    r2 = 1 - np.square(error).sum() / spread if spread > 0 else float("nan")
    mae, rmse = np.abs(error).mean(), np.sqrt(np.square(error).mean())
    note = f"MAE {mae:.3g} {unit}\nRMSE {rmse:.3g} {unit}\nR² {r2:.3f}"
    ax.text(0.04, 0.96, note, transform=ax.transAxes, va="top", fontsize=8)
    ax.set(xlabel=f"true ({unit})", ylabel=f"predicted ({unit})", title=title, aspect="equal")
    ax.set(xlim=box[:2], ylim=box[2:])


def draw_error_by_sigma(ax: Axes, data: FigureData) -> None:
    """Draw the mean absolute error of the noise at each level, and that of predicting zeros."""
    zeros = data.sigmas * np.sqrt(2 / np.pi)
    ax.plot(data.sigmas, zeros, color=GREY, ls=DASHED, lw=1, label="no noise predicted")
    style = {"ms": 4, "lw": 1.4}
    ax.plot(data.sigmas, data.noise_mae, "o-", color=BLUE, label="forces encoded", **style)
    ax.plot(data.sigmas, data.noise_mae_hidden, "s-", color=RED, label="forces hidden", **style)
    ax.set(xlabel="sigma (Å)", ylabel="noise MAE (Å)", xlim=(0, None), ylim=(0, None))
    ax.legend(loc="upper left")


def _draw_error_by_force(axes: NDArray, data: FigureData) -> None:
    """Draw errors of forces and of noise in bins of the true force's norm."""
    left, right = axes
    error = np.linalg.norm(data.forces_pred - data.forces, axis=1)
    _draw_binned(left, np.linalg.norm(data.forces, axis=1), error, BLUE)
    left.set(xlabel="|F| (eV/Å)", ylabel="force error (eV/Å)", title="clean structures")
    error = np.linalg.norm(data.noise_pred - data.noise, axis=1)
    _draw_binned(right, data.noise_force_norm, error, RED)
    right.set(xlabel="|F| of the original (eV/Å)", ylabel="noise error (Å)")
    right.set(title=f"corrupted atoms, sigma = {data.sigma:g} Å")


def _draw_binned(ax: Axes, x: NDArray, y: NDArray, color: str) -> None:
    """Draw median and quartiles of ``y`` in bins of ``x`` with about equally many points."""
    edges = np.unique(np.quantile(x, np.linspace(0, 1, min(12, max(len(x) // 8, 1)) + 1)))
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(len(edges) - 2, 0))
    bins = [place == i for i in np.unique(place)]
    center = [np.median(x[here]) for here in bins]
    low, middle, high = np.transpose([np.quantile(y[here], (0.25, 0.5, 0.75)) for here in bins])
    ax.fill_between(center, low, high, color=color, alpha=0.2, lw=0, label="quartiles")
    ax.plot(center, middle, color=color, lw=1.4, marker="o", ms=3, label="median")
    ax.set(xlim=(0, None), ylim=(0, None))
    ax.legend(loc="upper left")


def _draw_error_by_element(ax: Axes, data: FigureData) -> None:
    """Draw the mean force error of each element, with the number of its atoms."""
    error = np.abs(data.forces_pred - data.forces).mean(axis=1)
    elements, counts = np.unique(data.forces_numbers, return_counts=True)
    mean = [error[data.forces_numbers == z].mean() for z in elements]
    bars = ax.bar(range(len(elements)), mean, color=BLUE, width=0.7)
    if len(elements) <= 24:
        ax.bar_label(bars, [str(n) for n in counts], fontsize=7, color=GREY, padding=1)
    ax.set_xticks(range(len(elements)), [chemical_symbols[z] for z in elements])
    ax.set(ylabel="force MAE (eV/Å)", xlabel="element (number of atoms above)")
    ax.margins(y=0.12)


def _draw_stages(axes: NDArray, structure: DenoisedStructure) -> None:
    """Draw a structure before corruption, corrupted and denoised, seen from the side.

    Arrows show the displacements from the original, magnified.
    """
    turn = rotate("-80x,12y,0z")
    moved = np.any(structure.corrupted != structure.pos, axis=1)
    stages = structure.atoms().items()
    for ax, (name, atoms), color in zip(axes, stages, (INK, RED, BLUE), strict=True):
        _draw_atoms(ax, structure.numbers, atoms.positions @ turn)
        off = (atoms.positions - structure.pos)[moved]
        start, arrows = (structure.pos @ turn)[moved], _MAGNIFIED * off @ turn
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


def _draw_atoms(ax: Axes, numbers: NDArray, seen: NDArray) -> None:
    """Draw atoms as discs, nearer ones in front: ``seen`` (n_atoms, 3), Å, z towards the viewer."""
    for z, (x, y, depth) in zip(numbers, seen, strict=True):
        disc = Circle(
            (x, y), 0.75 * covalent_radii[z], fc=(*jmol_colors[z], 0.85), ec=INK, lw=0.6,
            zorder=10 + depth,
        )  # fmt: skip
        ax.add_patch(disc)
