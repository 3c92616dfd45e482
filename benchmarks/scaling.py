"""Measure and plot how the time of a step grows with neighbours and lmax.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling --size S --plot scaling.png

Each point is measured as :mod:`benchmarks.step` does.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from fairchem.core.common.utils import setup_imports

from benchmarks.arms import SIZES
from benchmarks.measure import commit, hardware
from benchmarks.step import times

ARMS = ["fairchem", "fairchem DeNS", "ours", "ours DeNS, r = 0.5"]
# axis: values, each the settings that it stands for
AXES = {
    "neighbours": {n: {"max_neighbors": n} for n in (10, 20, 40, 60)},
    # the grid grows with lmax, as in the recipes
    "lmax": {n: {"lmax_list": [n], "grid_resolution": 2 * n + 6} for n in (2, 3, 4, 6)},
}


def measure(size: dict, axis: str, rounds: int, device: str) -> dict[str, dict[int, list[float]]]:
    """Measure the seconds of each round, by arm and value."""
    found: dict[str, dict[int, list[float]]] = {arm: {} for arm in ARMS}
    for value, settings in AXES[axis].items():
        for arm, seconds in times(ARMS, {**size, **settings}, 1, rounds, device).items():
            found[arm][value] = seconds
    return found


def table(axis: str, found: dict[str, dict[int, list[float]]]) -> str:
    """Format median seconds by value and arm, and the median ratio of the two with DeNS."""
    lines = [f"| {axis} | " + " | ".join(found) + " | ratio with DeNS |"]
    lines.append("|---|" + "---|" * (len(found) + 1))
    for value in AXES[axis]:
        cells = [f"{np.median(by_value[value]):.3g}" for by_value in found.values()]
        theirs, ours = found["fairchem DeNS"][value], found["ours DeNS, r = 0.5"][value]
        ratio = np.median(np.array(theirs) / np.array(ours))
        lines.append(f"| {value} | " + " | ".join(cells) + f" | {ratio:.2f} |")
    return "\n".join(lines)


def plot(found: dict[str, dict], path: Path) -> None:
    """Draw one panel for each axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(8, 3.2), sharey=True)
    for panel, (axis, arms) in zip(np.atleast_1d(panels), found.items(), strict=True):
        for arm, by_value in arms.items():
            style = "--" if arm.startswith("fairchem") else "-"
            medians = [np.median(seconds) for seconds in by_value.values()]
            panel.plot(list(by_value), medians, style, marker="o", label=arm)
        panel.set(xlabel=axis, ylim=(0, None))
    np.atleast_1d(panels)[0].set_ylabel("s / step")
    panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--plot", type=Path, help="PNG file")
    args = parser.parse_args()
    setup_imports()
    if args.device == "cpu":
        torch.set_num_threads(1)
    found = {}
    for axis in args.axes:
        found[axis] = measure(SIZES[args.size], axis, args.rounds, args.device)
        print(table(axis, found[axis]) + "\n")
    if args.plot:
        plot(found, args.plot)
    if args.out:
        about = {"hardware": hardware(args.device), "commit": commit(), "torch": torch.__version__}
        args.out.write_text(json.dumps({**about, "size": args.size, "seconds": found}) + "\n")


if __name__ == "__main__":
    main()
