"""What the commands that convert share: options, and the progress that they show."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from dens.data.convert.labels import Recipe

SHARD_SIZE = 100_000  # records per LMDB file


def common_options(command: Callable) -> Callable:
    """The options that ``convert`` and ``oc20`` share."""
    for option in (
        click.option("--workers", default=1, show_default=True, type=click.IntRange(1)),
        click.option(
            "--shard-size",
            default=SHARD_SIZE,
            show_default=True,
            type=click.IntRange(1, SHARD_SIZE),
            help="Frames per LMDB file; an interruption costs one file at most.",
        ),
        click.option(
            "--max-neighbors", type=click.IntRange(1), help="Limit of each atom for --cutoff."
        ),
        click.option(
            "--cutoff",
            type=click.FloatRange(0, min_open=True),
            help="Å; counts the edges of each structure, for balanced batches.",
        ),
        click.option(
            "--max-force",
            type=click.FloatRange(0, min_open=True),
            help="eV/Å; drop structures with a larger force on a free atom.",
        ),
        click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder."),
    ):
        command = option(command)
    return command


def recipe_from(options: dict, **more) -> Recipe:
    """The recipe of a command; takes its part out of the options.

    Raises:
        ValueError: a limit of neighbours without a cutoff.
    """
    names = ("max_force", "cutoff", "max_neighbors")
    recipe = Recipe(**{name: options.pop(name) for name in names}, **more)
    if recipe.max_neighbors is not None and recipe.cutoff is None:
        raise ValueError("--max-neighbors needs --cutoff")
    return recipe


def show_progress(done: int, total: int) -> None:
    """A bar on a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        bar = "#" * (30 * done // total)
        click.echo(f"\r[{bar:30}] {done} of {total} structures", nl=done == total, err=True)
