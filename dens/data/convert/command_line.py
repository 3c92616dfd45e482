"""Options, progress bar and summary that the conversion commands share."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from dens.data.convert.labels import LabelRules
from dens.data.store.lmdb import SHARD_SIZE

_POSITIVE = click.FloatRange(0, min_open=True)
_OPTIONS = (
    click.option("--workers", default=1, show_default=True, type=click.IntRange(1)),
    click.option(
        "--shard-size",
        default=SHARD_SIZE,
        show_default=True,
        type=click.IntRange(1, SHARD_SIZE),
        help="Frames per LMDB file; an interruption loses one file at most.",
    ),
    click.option("--max-neighbors", type=click.IntRange(1), help="Limit per atom for --cutoff."),
    click.option("--cutoff", type=_POSITIVE, help="Å; counts the edges, for balanced batches."),
    click.option(
        "--max-force", type=_POSITIVE, help="eV/Å; drops structures with a larger free-atom force."
    ),
    click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder."),
)
_ASSUMPTIONS = {
    "tags_from_fixed": "without tags: fixed atoms have tag 0 now, free ones 1",
    "tags_zero": "without tags and fixed atoms: all their atoms have tag 0 now",
    "other_constraints": "with constraints other than FixAtoms, which do not count here",
    "cells_dropped": "without periodic boundaries: their cells are not kept",
}


def common_options(command: Callable) -> Callable:
    """Add the options that ``convert`` and ``oc20`` share to a command."""
    for option in _OPTIONS:
        command = option(command)
    return command


def take_rules(options: dict, **more) -> LabelRules:
    """Take the rules for labels out of a command's options.

    Raises:
        ValueError: a limit of neighbours without a cutoff.
    """
    names = ("max_force", "cutoff", "max_neighbors")
    rules = LabelRules(**{name: options.pop(name) for name in names}, **more)
    if rules.max_neighbors is not None and rules.cutoff is None:
        raise ValueError("--max-neighbors needs --cutoff")
    return rules


def show_progress(done: int, total: int) -> None:
    """Draw a progress bar, on a terminal only."""
    if sys.stderr.isatty():
        bar = "#" * (30 * done // total)
        click.echo(f"\r[{bar:30}] {done} of {total} structures", nl=done == total, err=True)


def report(out: str | Path, totals: Mapping[str, Counter]) -> None:
    """Print the number of structures written, and the assumptions made."""
    for split, counts in totals.items():
        dropped = f", {counts['dropped']} dropped" if counts["dropped"] else ""
        click.echo(f"{Path(out, split)}: {counts['records']} structures{dropped}")
    total = sum(totals.values(), Counter())
    for key, assumed in _ASSUMPTIONS.items():
        if total[key]:
            click.echo(f"{total[key]} structures {assumed}")
