"""Write the report of a study, and a table over all studies, between markers of a Markdown file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from scipy.stats import t as student

from experiments.study import Study, expand

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

ERRORS = {"forces_mae": "forces, meV/Å", "energy_mae": "energy, meV"}
WEIGHTS = {"best": "Best checkpoint by validation", "final": "Last step, raw weights"}
BySeed = Mapping[int, float]


def paired_difference(ours: BySeed, theirs: BySeed) -> tuple[float, float]:
    r"""Return the mean difference over common seeds, and half the width of its 95 % interval.

    .. math:: \bar d \pm t_{n-1,\,0.975}\, s_d / \sqrt{n}, \qquad d_s = a_s - b_s

    Without a common seed both are NaN; with one, the interval is NaN.
    """
    d = np.array([ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()])
    if len(d) < 2:
        return float(d.sum()) if len(d) else np.nan, np.nan
    half = student.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return float(d.mean()), float(half)


class Results:
    """Results of a study; the rows of its tables are variants, test sets and arms."""

    def __init__(self, study: Study, results: Sequence[Mapping]) -> None:
        self.study = study
        self.by_run = {(r["variant"], r["arm"], r["seed"]): r for r in results}
        self.rows = [
            (variant, test, arm)
            for variant, settings in study.variants.items()
            for test in settings.measured_on
            for arm in study.arms_of(variant)
        ]

    def of(self, variant: str, arm: str) -> dict[int, Mapping]:
        """Return the finished results of a variant and arm, by seed."""
        seeds = self.study.seeds_of(variant)
        runs = {seed: self.by_run.get((variant, arm, seed)) for seed in seeds}
        return {seed: result for seed, result in runs.items() if result}

    def errors(self, row: tuple, weights: str, error: str) -> dict[int, float]:
        """Return an error by seed, in meV or meV/Å."""
        variant, test, arm = row
        found = self.of(variant, arm).items()
        return {seed: 1000 * r["errors"][weights][test][error] for seed, r in found}

    def missing(self) -> list[str]:
        """Return the names of the runs without a result."""
        places = dict.fromkeys((variant, arm) for variant, _, arm in self.rows)
        names = [(v, a, s) for v, a in places for s in self.study.seeds_of(v)]
        return [f"{v}-{a}-seed{s}" for v, a, s in names if (v, a, s) not in self.by_run]


def error_table(results: Results, weights: str) -> str:
    """Format mean and standard deviation over seeds, and the difference from the reference.

    Arms without a result are left out here: :meth:`Results.missing` names them.
    """
    head = ["variant", "test set", "arm", "seeds"]
    lines = []
    for row in results.rows:
        runs = results.of(row[0], row[2])
        if not runs:
            continue
        line = [*row, f"{len(runs)} of {len(results.study.seeds_of(row[0]))}"]
        for error in ERRORS:
            ours = results.errors(row, weights, error)
            base = results.errors((*row[:2], results.study.reference), weights, error)
            is_reference = row[2] == results.study.reference
            line += [spread(ours), "" if is_reference else difference(ours, base)]
        lines.append(line)
    return table(head + [cell for unit in ERRORS.values() for cell in (unit, "difference")], lines)


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


def cost_table(results: Results) -> str:
    """Format steps, parameters and time of training."""
    head = ["variant", "arm", "steps", "parameters", "CPU minutes", "of reference's", "restarts"]
    lines = []
    for variant, arm in dict.fromkeys((variant, arm) for variant, _, arm in results.rows):
        runs, base = results.of(variant, arm), results.of(variant, results.study.reference)
        if not runs:
            continue
        ratios = [runs[s]["cpu_s"] / base[s]["cpu_s"] for s in runs.keys() & base.keys()]
        any_run = next(iter(runs.values()))
        lines.append([
            variant, arm, any_run["steps"], f"{any_run['parameters']:,}",
            spread({seed: run["cpu_s"] / 60 for seed, run in runs.items()}),
            f"{np.mean(ratios):.2f}" if ratios else "missing",
            sum(run["starts"] - 1 for run in runs.values()),
        ])  # fmt: skip
    return table(head, lines)


def denoising_table(results: Results) -> str:
    """Format mean absolute errors of the noise on corrupted atoms; empty if none were measured."""
    head = ["variant", "test set", "arm", "sigma, Å", "told the forces, Å", "not told", "zeros"]
    lines = []
    for variant, test, arm in results.rows:
        found = [run["denoising"] for run in results.of(variant, arm).values() if run["denoising"]]
        for sigma in [f"{sigma:g}" for sigma in results.study.sigmas if found]:
            keys = ("told", "not_told", "zeros")
            means = [np.mean([noise[test][sigma][key] for noise in found]) for key in keys]
            lines.append([variant, test, arm, sigma, *(f"{mean:.4f}" for mean in means)])
    return table(head, lines) if lines else ""


def table(head: Sequence[str], lines: Sequence[Sequence]) -> str:
    """Format a Markdown table."""
    lines = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def draw(results: Results, path: Path) -> None:
    """Draw errors of every seed and validation curves, one row of panels for each variant."""
    begun = {variant for variant, _, _ in results.by_run}
    variants = {name: v for name, v in results.study.variants.items() if name in begun}
    width = len(ERRORS) * max(len(variant.measured_on) for variant in variants.values()) + 1
    size = (3 * width, 2.8 * len(variants))
    figure, axes = plt.subplots(len(variants), width, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, (name, variant) in zip(axes, variants.items(), strict=True):
        arms = [arm for arm in results.study.arms_of(name) if results.of(name, arm)]
        panels = [(test, error) for test in variant.measured_on for error in ERRORS]
        for axis, (test, error) in zip(row, panels, strict=False):
            for i, arm in enumerate(arms):
                values = [*results.errors((name, test, arm), "best", error).values()]
                axis.plot([i] * len(values), values, "o", color=f"C{i}", alpha=0.7)
            axis.set(title=f"{name}, {test}", ylabel=ERRORS[error], xlim=(-0.6, len(arms) - 0.4))
            axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
            axis.set_xticks(range(len(arms)), arms, rotation=90 if len(arms) > 4 else 15)
            axis.set_axis_on()
        curves = row[len(panels)]
        for i, arm in enumerate(arms):
            for run in results.of(name, arm).values():
                steps, forces, _ = np.array(run["validation"]).T
                curves.plot(steps, 1000 * forces, color=f"C{i}", linewidth=1)
        curves.set(title=f"{name}, validation", xlabel="step", ylabel=ERRORS["forces_mae"])
        curves.set_yscale("log")
        curves.yaxis.set_major_formatter("{x:g}")
        curves.yaxis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 5, 7)))
        curves.yaxis.set_minor_formatter("{x:g}")
        curves.set_axis_on()
    _save(figure, path)


def write_report(name: str, study: Study, found: Sequence[Mapping], out: Path) -> None:
    """Replace the study's part of `out`, or append it; write the figure to a folder beside it."""
    results = Results(study, found)
    missing = results.missing()
    parts = [f"## {study.title}", f"`python -m experiments.run {name} --report`"]
    parts += [f"**Missing** ({len(missing)}): {', '.join(missing)}."] * bool(missing)
    if found:
        image = Path("results", f"{name}.png")
        draw(results, out.parent / image)
        parts += [f"{title}:\n\n{error_table(results, w)}" for w, title in WEIGHTS.items()]
        parts += [f"![{study.title}]({image})", cost_table(results)]
        noise = denoising_table(results)
        parts += [f"Noise on corrupted atoms, mean absolute error:\n\n{noise}"] * bool(noise)
        hosts = {f"{h['gpu'] or h['cpu']}, torch {h['torch']}" for h in (r["host"] for r in found)}
        commits = ", ".join(sorted({run["commit"] for run in found}))
        parts.append(f"One thread each on {'; '.join(sorted(hosts))}. Commits: {commits}.")
    _write_part(out, f"study {name}", parts)


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
                    seeds = f"{len(common)} of {len(study.seeds_of(variant))}"
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
    _write_part(out, "overview", [table(head, lines), f"![Change by DeNS]({image})"])


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
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _write_part(out: Path, name: str, parts: Sequence[str]) -> None:
    """Replace the text between the markers `name`, or append it."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = "\n\n".join([begin, *parts, end])
    out.parent.mkdir(parents=True, exist_ok=True)
    text = out.read_text(encoding="utf-8") if out.exists() else "# Results\n"
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}{end}\n"
    pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
    out.write_text(re.sub(pattern, lambda _: section, text, flags=re.DOTALL), encoding="utf-8")
