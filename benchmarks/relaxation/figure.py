"""Draw how relaxations go, and one molecule before, after and as it should be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase.data import covalent_radii
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from benchmarks.relaxation.molecules import GIVEN, Starts
from dens.relax.config import DEFAULTS, RelaxSettings
from dens.relax.evaluation import rmsd
from dens.relax.loop import Relaxed, relax_structures
from dens.relax.quality import superpose
from dens.relax.samplers import Sampler, StopRule
from dens.relax.structures import Denoiser, Structure
from dens.runs.figures import BLUE, DASHED, GREY, INK, RED, STYLE, make_figure

_COLORS = ("#8fc1e3", "#3f88c5", "#1f4f8b", "#6b4c9a")  # of noise, by level
_BOND = 1.25  # atoms are bonded if nearer than so many times the sum of covalent radii


class Way(NamedTuple):
    """How structures were relaxed from one kind of start; after its end a structure stays."""

    name: str
    rmsd: NDArray  # (n, calls + 1) | Å, from the true structure after so many calls
    found: NDArray  # (n, calls) | Å, noise level found by each call
    stop: float  # Å, noise level that counts as relaxed
    starts: Starts
    relaxed: list[Relaxed]


def relax_with_history(
    denoiser: Denoiser, settings: RelaxSettings, starts: Starts, seed: int
) -> Way:
    """Relax structures and follow each from call to call."""
    relaxed = relax_structures(
        starts.starts, denoiser, settings, seed, numbers=starts.numbers, keep_history=True
    )
    last = max(one.calls for one in relaxed)
    distance = [
        rmsd(starts.true, [_after(one, k) for one in relaxed]).numpy() for k in range(last + 1)
    ]
    found = [[one.sigmas[min(k, one.calls - 1)] for one in relaxed] for k in range(last)]
    sampler = Sampler(settings, denoiser.levels, getattr(denoiser, "defaults", DEFAULTS))
    stop = denoiser.levels.sigmas[StopRule(sampler).stop_level]
    return Way(starts.name, np.array(distance).T, np.array(found).T, stop, starts, relaxed)


def _after(relaxed: Relaxed, calls: int) -> torch.Tensor:
    return relaxed.history[calls] if calls < relaxed.calls else relaxed.pos


@rc_context(STYLE)
def draw(ways: Sequence[Way]) -> Figure:
    """Draw RMSD and noise level against calls, and a typical molecule of the first kind of start.

    Args:
        ways: what was relaxed, of each kind of start.
    """
    figure, axes = make_figure(7.2, 4.8, rows=2, columns=2)
    longest = max(2, *(int(np.quantile(_calls(way), 0.95)) for way in ways))
    for i, way in enumerate(ways):
        given = way.name == GIVEN
        color = INK if given else _COLORS[i % len(_COLORS)]
        label = "as given (pos_start)" if given else f"noise {way.name} Å"
        _draw_band(axes[0], _held(way.rmsd, longest + 1), 0, color, label)
        _draw_band(axes[1], _held(way.found, longest), 1, color)
    axes[1].axhline(ways[0].stop, color=GREY, lw=1, ls=DASHED, label="stop level")
    axes[1].legend(loc="upper right")
    n = max(len(way.relaxed) for way in ways)
    axes[0].set(ylabel="RMSD from the truth (Å)", title=f"median and quartiles of {n} structures")
    axes[1].set(ylabel="noise level found (Å)", title="the model's own estimate")
    for ax, first in zip(axes, (0, 1), strict=False):
        ax.set(xlabel="calls of the network", xlim=(first, longest), ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend(loc="upper right")
    _draw_molecule(axes[2:], ways[-1] if ways[-1].name != GIVEN else ways[max(len(ways) - 2, 0)])
    return figure


def _held(values: NDArray, length: int) -> NDArray:
    """Cut the columns to a length, or repeat the last one up to it."""
    columns = np.minimum(np.arange(length), values.shape[1] - 1)
    return values[:, columns]


def _calls(way: Way) -> list[int]:
    return [one.calls for one in way.relaxed]


def _draw_band(ax: Axes, values: NDArray, first: int, color: str, label: str | None = None) -> None:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    calls = first + np.arange(values.shape[1])
    ax.fill_between(calls, low, high, color=color, alpha=0.25, lw=0)
    ax.plot(calls, middle, "o-", ms=3, lw=1.4, color=color, label=label)


def _draw_molecule(axes: Sequence[Axes], way: Way) -> None:
    """Draw the molecule whose RMSD after relaxation is the median, before and after it."""
    chosen = int(np.argsort(way.rmsd[:, -1])[(len(way.rmsd) - 1) // 2])
    true, start = way.starts.true[chosen], way.starts.starts[chosen]
    batch = torch.zeros(len(true), dtype=torch.long)
    natoms = torch.tensor([len(true)])
    views = [
        ("before", start.pos, RED, way.rmsd[chosen, 0]),
        ("after", way.relaxed[chosen].pos, BLUE, way.rmsd[chosen, -1]),
    ]
    flat = true.pos.numpy() - true.pos.numpy().mean(0)
    plane = np.linalg.svd(flat)[2].T  # columns: longest direction first
    axes[1].sharex(axes[0])
    axes[1].sharey(axes[0])
    for ax, (name, pos, color, distance) in zip(axes, views, strict=True):
        laid = superpose(pos, true.pos, batch, natoms).numpy() - true.pos.numpy().mean(0)
        _draw_sticks(ax, true, flat @ plane, GREY, 4.0)
        _draw_sticks(ax, true, laid @ plane, color, 1.6)
        ax.set(title=f"{name}: RMSD {distance:.3f} Å", aspect="equal")
        ax.autoscale_view()
        ax.set_axis_off()
    note = f"grey: true structure; noise {way.name} Å, the median result"
    axes[0].text(0, -0.08, note, color=INK, fontsize=7, transform=axes[0].transAxes)


def _draw_sticks(ax: Axes, structure: Structure, seen: NDArray, color: str, width: float) -> None:
    """Draw bonds as lines and atoms as dots: ``seen`` (n_atoms, 3), Å; bonds of the true one."""
    numbers, pos = structure.numbers.numpy(), structure.pos.numpy()
    reach = _BOND * (covalent_radii[numbers][:, None] + covalent_radii[numbers][None])
    near = np.linalg.norm(pos[:, None] - pos[None], axis=2) < reach
    pairs = np.argwhere(np.triu(near, k=1))
    ax.add_collection(LineCollection(seen[pairs][:, :, :2], colors=color, linewidths=width))
    sizes = np.where(numbers == 1, 8, 22) * (1 + 0.2 * width)
    ax.scatter(*seen.T[:2], s=sizes, color=color, zorder=3)
