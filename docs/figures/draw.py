"""Draw the pictures of the pages on the method: ``python docs/figures/draw.py``.

``slab.png`` shows what DeNS does to a structure, with the package's own corruption; ``flow.svg``
the way of a batch through a training step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc100
from ase.calculators.emt import EMT
from ase.visualize.plot import plot_atoms

import dens

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

_VIEW = "-90x"  # along the only row, from the side
_SIGMA = 0.35  # Å, more than in training, so that it can be seen
matplotlib.rcParams["svg.hashsalt"] = "dens"  # equal files for equal figures


def example() -> tuple[Atoms, dens.Corruption]:
    """Return a slab that is not relaxed, with its forces, and a corruption of it."""
    slab = fcc100("Cu", size=(5, 1, 3), vacuum=3.0, periodic=True)
    add_adsorbate(slab, "O", height=1.2, position="hollow")
    slab.rattle(0.08, seed=3)
    slab.calc = EMT()
    config = dens.parse_config(
        {"prob": 1.0, "corrupt_ratio": 0.5, "sigma": _SIGMA, "denoising_coefficient": 10.0}
    )
    pos, n = torch.tensor(slab.positions), len(slab)
    fixed = torch.tensor(slab.get_tags() == 3)
    layout = (torch.zeros(n, dtype=torch.long), torch.tensor([n]))
    random = torch.Generator().manual_seed(5)
    return slab, dens.corrupt(pos, *layout, config, random, fixed=fixed)


def draw_slab(path: Path) -> None:
    """Draw a structure with its forces, corrupted, and what the network is to predict."""
    slab, corrupted = example()
    moved = slab.copy()
    moved.positions = corrupted.pos.numpy()
    mask, noise = corrupted.noise_mask.numpy(), corrupted.noise.numpy()
    forces = slab.get_forces()
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    _show(
        panels[0], slab, np.zeros(len(slab), bool), "a structure that is not relaxed,\nits forces"
    )
    _arrows(panels[0], slab, 0.6 * forces, "C0")
    _show(
        panels[1],
        moved,
        mask,
        "input: some atoms displaced (orange),\ntheir forces in the original",
    )
    _arrows(panels[1], moved, 0.6 * forces * mask[:, None], "C0")
    _show(panels[2], moved, mask, "learned: the noise, which leads back (red),\nthe other forces")
    _arrows(panels[2], moved, 0.6 * forces * ~mask[:, None], "C0")
    _arrows(panels[2], moved, -noise, "C3")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _show(axes: Axes, atoms: Atoms, marked: np.ndarray, title: str) -> None:
    colors = np.where(atoms.numbers == 8, "#e8a0a0", "#d9d9d9")
    colors = [
        matplotlib.colors.to_rgb("#f6b26b" if m else c) for c, m in zip(colors, marked, strict=True)
    ]
    plot_atoms(atoms, axes, rotation=_VIEW, radii=0.75, show_unit_cell=0, colors=np.array(colors))
    axes.set_title(title, fontsize=11)
    axes.set_axis_off()


def _arrows(axes: Axes, atoms: Atoms, vectors: np.ndarray, color: str) -> None:
    """Draw vectors from the centres of the circles that ``plot_atoms`` has drawn."""
    centres = np.array([patch.center for patch in axes.patches if hasattr(patch, "center")])
    from ase.utils import rotate

    flat = vectors @ rotate(_VIEW)
    # plot_atoms draws from the back to the front
    order = np.argsort((atoms.positions @ rotate(_VIEW))[:, 2], kind="stable")
    for centre, vector in zip(centres[-len(atoms) :], flat[order, :2], strict=True):
        if np.hypot(*vector) > 0.05:
            style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "zorder": 100}
            axes.annotate("", xy=centre + 1.5 * vector, xytext=centre, arrowprops=style)


_BOXES = {  # name: (x, y, text, colour)
    "data": (0, 1, "data\nE, f, p", "#dce6f2"),
    "draws": (0, 0, "random numbers\nseed, epoch,\nsample id", "#dce6f2"),
    "corrupt": (1, 1, "corrupt\np + ε on C", "#f2e3d5"),
    "encode": (1, 0, "encode forces f\nof C", "#f2e3d5"),
    "model": (2, 1, "backbone\n(stock)", "#e2efda"),
    "heads": (3, 1, "heads:\nE, F, noise", "#e2efda"),
    "targets": (3, 0, "targets:\nE; f outside C;\nε on C", "#f2e3d5"),
    "loss": (4, 1, "loss\nsums over ranks", "#e2efda"),
}
_ARROWS = ["data corrupt", "draws corrupt", "data encode", "corrupt model", "encode model"]
_ARROWS += ["model heads", "heads loss", "targets loss", "corrupt targets"]


def draw_flow(path: Path) -> None:
    """Draw the way of a batch through a training step."""
    figure, axes = plt.subplots(figsize=(10, 3.4), layout="constrained")
    axes.set(xlim=(-0.5, 4.5), ylim=(-0.55, 1.45))
    axes.set_axis_off()
    places = {}
    for name, (x, y, text, color) in _BOXES.items():
        box = {"boxstyle": "round,pad=0.6", "facecolor": color, "edgecolor": "#555555"}
        places[name] = axes.text(x, y, text, ha="center", va="center", fontsize=11, bbox=box)
    for pair in _ARROWS:
        start, end = (places[name] for name in pair.split())
        style = {"arrowstyle": "-|>", "color": "#555555", "shrinkA": 2, "shrinkB": 2}
        style |= {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch()}
        axes.annotate("", xy=end.get_position(), xytext=start.get_position(), arrowprops=style)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "how")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    draw_slab(args.out / "slab.png")
    draw_flow(args.out / "flow.svg")
    print(f"{args.out}: slab.png, flow.svg")


if __name__ == "__main__":
    main()
