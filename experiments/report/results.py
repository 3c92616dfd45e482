"""Write the report of a study: its errors, costs and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator

from experiments.report.tables import ERRORS, difference, save_figure, spread, table, write_part
from experiments.study import Study

WEIGHTS = {"best": "Best checkpoint by validation", "final": "Last step, raw weights"}


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
        seeds = self.study.seeds_of(variant, arm)
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
        names = [(v, a, s) for v, a in places for s in self.study.seeds_of(v, a)]
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
        line = [*row, f"{len(runs)} of {len(results.study.seeds_of(row[0], row[2]))}"]
        for error in ERRORS:
            ours = results.errors(row, weights, error)
            base = results.errors((*row[:2], results.study.reference), weights, error)
            is_reference = row[2] == results.study.reference
            line += [spread(ours), "" if is_reference else difference(ours, base)]
        lines.append(line)
    return table(head + [cell for unit in ERRORS.values() for cell in (unit, "difference")], lines)


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
    save_figure(figure, path)


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
    write_part(out, f"study {name}", parts)
