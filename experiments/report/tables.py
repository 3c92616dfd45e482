"""Paired differences, Markdown tables, and the parts of a report between its markers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import t as student

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ERRORS = {"forces_mae": "forces, meV/Å", "energy_mae": "energy, meV"}
BySeed = Mapping[int, float]


def paired_difference(ours: BySeed, theirs: BySeed) -> tuple[float, float]:
    r"""Return the mean difference over common seeds, and half the width of its 95 % interval.

    .. math:: \bar d \pm t_{n-1,\,0.975}\, s_d / \sqrt{n}, \qquad d_s = a_s - b_s

    Without a common seed both are NaN; with one, the interval is NaN.
    """
    d = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    if len(d) < 2:
        return float(d.sum()) if len(d) else np.nan, np.nan
    half = student.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return float(d.mean()), float(half)


def spread(values: BySeed) -> str:
    """Format mean ± standard deviation."""
    x = np.array([*values.values()])
    if len(x) < 2:
        return f"{x[0]:.1f}"
    return f"{x.mean():.1f} ± {x.std(ddof=1):.1f}"


def difference(ours: BySeed, base: BySeed, bold: bool = False) -> str:
    """Format the paired difference, with its interval, and in per cent of the reference's mean.

    Args:
        bold: set in bold if the interval excludes zero.
    """
    mean, half = paired_difference(ours, base)
    if np.isnan(mean):
        return "missing"
    interval = "one seed" if np.isnan(half) else f"{mean - half:+.1f} to {mean + half:+.1f}"
    text = f"{mean:+.1f} [{interval}], {100 * relative_difference(ours, base)[0]:+.0f} %"
    return f"**{text}**" if bold and abs(mean) > half else text


def relative_difference(ours: BySeed, base: BySeed) -> tuple[float, float]:
    """Return paired difference and interval, divided by the reference's mean over those seeds."""
    whole = float(np.mean([base[seed] for seed in ours.keys() & base.keys()]))
    mean, half = paired_difference(ours, base)
    return mean / whole, half / whole


def table(head: Sequence[str], lines: Sequence[Sequence]) -> str:
    """Format a Markdown table."""
    lines = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure as PNG and close it."""
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write_part(out: Path, name: str, parts: Sequence[str]) -> None:
    """Replace the text between the markers `name`, or append it."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = "\n\n".join([begin, *parts, end])
    out.parent.mkdir(parents=True, exist_ok=True)
    text = out.read_text(encoding="utf-8") if out.exists() else "# Results\n"
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}{end}\n"
    pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
    out.write_text(re.sub(pattern, lambda _: section, text, flags=re.DOTALL), encoding="utf-8")
