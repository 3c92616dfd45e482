"""Write the table over all studies, and the figure of change against the number of epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from experiments.report.results import Results
from experiments.report.tables import (
    ERRORS,
    BySeed,
    difference,
    relative_difference,
    save_figure,
    table,
    write_part,
)
from experiments.study import Study, expand


class Change(NamedTuple):
    """Change by an arm of a study, against the reference, for one variant."""

    study: str
    variant: str
    structures: int
    epochs: int
    arm: str
    seeds: str
    pairs: list[tuple[BySeed, BySeed]]  # for each of ERRORS: with the arm, and the reference's


def changes(studies: Mapping[str, tuple[Study, Sequence[Mapping]]]) -> list[Change]:
    """Collect the changes by the arms of ``overview``, the variant with the largest gain first.

    Measured at the best checkpoint, on the first test set of each variant; those with a seed in
    common with the reference.
    """
    found = []
    for name, (study, measured) in studies.items():
        results = Results(study, measured)
        epochs = {run.variant: run.config["optim"]["max_epochs"] for run in expand(name, study)}
        for variant, settings in study.variants.items():
            group = []
            for arm in study.overview:
                rows = [(variant, settings.measured_on[0], a) for a in (arm, study.reference)]
                pairs = [
                    tuple(results.errors(row, "best", error) for row in rows) for error in ERRORS
                ]
                if common := pairs[0][0].keys() & pairs[0][1].keys():
                    seeds = f"{len(common)} of {len(study.seeds_of(variant, arm))}"
                    place = (name, variant, settings.structures, epochs[variant])
                    group.append(Change(*place, arm, seeds, pairs))
            if group:
                found.append(group)
    found.sort(key=lambda group: relative_difference(*group[0].pairs[0])[0])
    return [change for group in found for change in group]


def write_overview(studies: Mapping[str, tuple[Study, Sequence[Mapping]]], out: Path) -> None:
    """Replace the table over all studies in `out`, or append it; write the figure beside it."""
    found = changes(studies)
    if not found:
        return
    head = ["study", "variant", "structures", "epochs", "arm", "seeds", *ERRORS.values()]
    lines = [
        [c.study, c.variant, f"{c.structures:,}", c.epochs, c.arm, c.seeds]
        + [difference(*pair, bold=True) for pair in c.pairs]
        for c in found
    ]
    image = Path("results", "overview.png")
    draw_overview(found, out.parent / image)
    write_part(out, "overview", [table(head, lines), f"![Change by DeNS]({image})"])


def draw_overview(found: Sequence[Change], path: Path) -> None:
    """Draw the relative change of force errors against the number of epochs, for each arm."""
    figure, axis = plt.subplots(figsize=(7, 4))
    for i, arm in enumerate(dict.fromkeys(change.arm for change in found)):
        own = [change for change in found if change.arm == arm]
        percents, bars = 100 * np.array([relative_difference(*c.pairs[0]) for c in own]).T
        x = [change.epochs * (1 + 0.06 * i) for change in own]  # side by side
        axis.errorbar(x, percents, bars, fmt="o", capsize=2, color=f"C{i}", label=arm)
    axis.axhline(0, color="gray", linewidth=1)
    axis.set(xscale="log", xlabel="epochs", ylabel="force errors against the baseline, %")
    axis.set_ylim(max(axis.get_ylim()[0], -60), min(axis.get_ylim()[1], 60))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.legend()
    save_figure(figure, path)
