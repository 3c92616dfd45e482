"""Which curves stand in which panel, and what they are called."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dens.runs.report.runs import Curve, Run

HIDDEN = "/no_forces"
_UNITS = {
    "energy_mae": "eV",
    "forces_mae": "eV/Å",
    "denoising_energy_mae": "eV",
    "denoising_forces_mae": "eV/Å",
    "denoising_pos_mae": "Å",
    "atoms_per_second": "1/s",
    "structures_per_second": "1/s",
    "gpu_memory_gib": "GiB",
}
_TITLES = {
    "energy_mae": "energy MAE",
    "forces_mae": "force MAE",
    "forces_cosine_similarity": "force cosine similarity",
    "denoising_pos_mae": "noise MAE",
    "denoising_pos_cosine": "noise cosine similarity",
    "denoising_pos_explained_variance": "noise variance explained",
    "denoising_energy_mae": "energy MAE, corrupted structures",
    "denoising_forces_mae": "force MAE beside corrupted atoms",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "gpu_memory_gib": "GPU memory",
    "atoms_per_second": "atoms per second",
    "structures_per_second": "structures per second",
}
_ORDER = (
    "forces_mae",
    "energy_mae",
    "forces_cosine_similarity",
    "denoising_pos_mae",
    "denoising_pos_explained_variance",
    "denoising_pos_cosine",
    "denoising_energy_mae",
    "denoising_forces_mae",
    "loss",
    "lr",
    "grad_norm",
)
GROUPS = ("S2EF", "Denoising", "Optimisation", "System")


@dataclass(frozen=True)
class Line:
    """One curve of a panel."""

    run: int  # its place among the runs
    split: str
    kind: Literal["train", "val", "hidden"]  # hidden: forces are not shown to the model
    curve: Curve


@dataclass
class Panel:
    """Curves of one quantity."""

    group: str
    title: str
    unit: str
    lines: list[Line] = field(default_factory=list)


def make_panels(runs: Sequence[Run]) -> list[Panel]:
    """All panels of the runs, in the order in which they are shown."""
    panels: dict[str, Panel] = {}
    for i, run in enumerate(runs):
        for name, curve in run.curves.items():
            split, metric = name.split("/", 1)
            base = metric.removesuffix(HIDDEN)
            if base not in panels:
                panels[base] = Panel(group_of(base, split), title_of(base), unit_of(base))
            kind = "hidden" if metric != base else "train" if split == "train" else "val"
            panels[base].lines.append(Line(i, split, kind, curve))
    order = sorted(panels, key=lambda base: (GROUPS.index(panels[base].group), *place_of(base)))
    return [panels[base] for base in order]


def place_of(metric: str) -> tuple[int, str]:
    """Sorts metrics: known ones first, each with its noise levels and without forces last."""
    base = metric.split("/")[0]
    return (_ORDER.index(base) if base in _ORDER else len(_ORDER), metric)


def group_of(metric: str, split: str) -> str:
    """The group of a metric."""
    if split == "system":
        return "System"
    if metric.startswith("denoising_"):
        return "Denoising"
    optimisation = ("loss", "grad", "lr", "skipped", "corrupted_fraction")
    return "Optimisation" if metric.startswith(optimisation) else "S2EF"


def unit_of(metric: str) -> str:
    """The unit of a metric, or nothing."""
    return _UNITS.get(metric.split("/")[0], "")


def title_of(metric: str) -> str:
    """A metric in words.

    >>> title_of("denoising_pos_mae/sigma=0.10")
    'noise MAE, sigma = 0.10 Å'
    """
    base, _, level = metric.partition("/sigma=")
    title = _TITLES.get(base) or re.sub(r"^(loss|gradient_share)_", _kind_of_term, base)
    title = title.replace("_", " ")
    return f"{title}, sigma = {level} Å" if level else title


def _kind_of_term(found: re.Match[str]) -> str:
    return {"loss": "loss term: ", "gradient_share": "share of the gradient: "}[found[1]]


def best_of(metric: str, curve: Curve) -> tuple[int, float]:
    """The step and value at which a metric was best: largest for similarities, else least."""
    finite = [(s, v) for s, v in zip(*curve, strict=True) if math.isfinite(v)]
    if not finite:
        return curve[0][-1], math.nan
    larger = any(word in metric for word in ("cosine", "explained_variance", "within_threshold"))
    return (max if larger else min)(finite, key=lambda pair: pair[1])
