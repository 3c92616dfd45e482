"""Options, progress bar and summary that the conversion commands share."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dens.data.convert.build import info_file
from dens.data.convert.labels import FAR, LabelRules
from dens.data.skipped import ON_BAD, describe_skipped
from dens.data.store.by_format import FORMATS
from dens.data.store.lmdb import SHARD_SIZE
from dens.data.survey.consistency import find_gradients
from dens.data.units import ENERGIES, LENGTHS, UNITS, Units, combine_units, parse_units
from dens.graphs.boundaries import CUTOFF, MIN_VACUUM, describe_vacuum

# (command, option, options of which one must be given, their values if not any)
NEEDS = (
    ("convert", "fractions", ("split",), ()),
    ("convert", "block", ("split",), ("by-block",)),
    ("convert", "seed", ("split",), ()),
    ("convert", "group_key", ("split",), ("by-system",)),
    ("convert", "max_neighbors", ("cutoff",), ()),
    ("oc20", "max_neighbors", ("cutoff",), ()),
    ("md17", "val_index", ("train_index",), ()),
    ("md17", "test_index", ("train_index",), ()),
    ("stats", "max_neighbors", ("cutoff",), ()),
    ("stats", "measured", ("cutoff", "config"), ()),
)
# options of convert that --labels none would ignore
OF_LABELS = ("energy", "energy_key", "forces_key", "stress_key", "energy_unit", "force_unit")
OF_LABELS += ("references", "max_force")
# (command, two options of which one replaces the other, unless a third is given)
EXCLUSIVE = (
    ("convert", "split", "index", None),
    *(("convert", "units", f"{quantity}_unit", None) for quantity in ("energy", "length", "force")),
    ("md17", "n_train", "train_index", None),
    ("md17", "n_val", "val_index", None),
    ("md17", "seed", "val_index", "n_test"),
)

_POSITIVE = click.FloatRange(0, min_open=True)
on_bad_option = click.option(
    "--on-bad",
    default="error",
    show_default=True,
    type=click.Choice(ON_BAD),
    help="skip: leave out bad frames and unreadable files, and say which.",
)
format_option = click.option(
    "--format",
    "store",
    default="lmdb",
    show_default=True,
    type=click.Choice(FORMATS),
    help="lmdb for fairchem-core 1.10, aselmdb for 2 (its ase_db).",
)
_OPTIONS = (
    format_option,
    click.option("--workers", default=1, show_default=True, type=click.IntRange(1)),
    click.option(
        "--shard-size",
        default=SHARD_SIZE,
        show_default=True,
        type=click.IntRange(1, SHARD_SIZE),
        help="Frames per file; an interruption loses one file at most.",
    ),
    click.option("--max-neighbors", type=click.IntRange(1), help="Limit per atom for --cutoff."),
    click.option("--cutoff", type=_POSITIVE, help="Å; counts the edges, for balanced batches."),
    click.option(
        "--max-force", type=_POSITIVE, help="eV/Å; drops structures with a larger free-atom force."
    ),
    on_bad_option,
    click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder."),
)
_STRUCTURE_OPTIONS = (
    click.option(
        "--pbc",
        type=click.Choice(["TTT", "FFF"]),
        help="Make all structures periodic (open ones get a box with vacuum), or all open.",
    ),
    click.option("--force-unit", help="Such as Hartree/Bohr.  [default: energy per length]"),
    click.option("--length-unit", help=f"One of {', '.join(LENGTHS)}.  [default: A, Å]"),
    click.option("--energy-unit", help=f"One of {', '.join(ENERGIES)}.  [default: eV]"),
    click.option("--units", help=f"All in one: {', '.join(UNITS)}.  [default: eV-A]"),
)
_ASSUMPTIONS = {
    "tags_from_fixed": "without tags: fixed atoms have tag 0 now, free ones 1",
    "tags_zero": "without tags and fixed atoms: all their atoms have tag 0 now",
    "other_constraints": "with constraints that hold atoms in part, which do not count here",
    "cells_dropped": "without periodic boundaries: their cells are not kept",
    "opened": "with periodic boundaries, which --pbc FFF takes away",
    "periodic_made": "periodic in some directions only, or without a cell vector: periodic in all "
    "now, {vacuum} along the others",
    "boxed": "without periodic boundaries: periodic now, {vacuum}",
    "narrow_vacuum": f"of these with no more than {{cutoff:g}} Å of vacuum (from {MIN_VACUUM:g} Å "
    "on): a model with that cutoff sees pairs across it",
    "far_from_references": f"with energies more than {FAR:g} eV per atom away from their "
    "references: other units, energies or settings than those of the references?",
    "md_replaced": "had another mark md, which is replaced",
}


class DataCommand(click.Command):
    """Command of ``dens data`` that refuses options that would be ignored."""

    def invoke(self, ctx: click.Context) -> Any:
        check_options(ctx)
        return super().invoke(ctx)


def check_options(ctx: click.Context) -> None:
    """Refuse options that need another one, or that another one replaces, see `NEEDS`.

    Raises:
        click.UsageError: names both options.
    """
    names = {param.name: param.opts[0] for param in ctx.command.params}
    defaults = (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    given = {name for name in names if ctx.get_parameter_source(name) not in defaults}
    for command, option, needed, values in NEEDS:
        if command != ctx.command.name or option not in given:
            continue
        if not any(name in given and (not values or ctx.params[name] in values) for name in needed):
            wanted = " or ".join(" ".join((names[name], *values)) for name in needed)
            raise click.UsageError(f"{names[option]} needs {wanted}")
    for option in OF_LABELS:
        if option in given and ctx.params.get("labels") == "none":
            raise click.UsageError(f"{names[option]} is for labels, and --labels none takes none")
    for command, one, other, unless in EXCLUSIVE:
        if command == ctx.command.name and {one, other} <= given and unless not in given:
            raise click.UsageError(
                f"{names[one]} and {names[other]} are two ways to say the same: give one"
            )


def common_options(command: Callable) -> Callable:
    """Add the options that ``convert`` and ``oc20`` share to a command."""
    for option in _OPTIONS:
        command = option(command)
    return command


def structure_options(command: Callable) -> Callable:
    """Add the options for units and boundaries to a command."""
    for option in _STRUCTURE_OPTIONS:
        command = option(command)
    return command


def take_units(options: dict) -> Units | None:
    """Take the units out of a command's options; None if none are given.

    Raises:
        ValueError: an unknown unit.
    """
    name = options.pop("units")
    energy, length, force = (options.pop(f"{q}_unit") for q in ("energy", "length", "force"))
    if energy or length or force:
        return combine_units(energy, length, force)
    return parse_units(name) if name else None


def take_rules(options: dict, **more: Any) -> LabelRules:
    """Take the rules for labels out of a command's options."""
    names = ("max_force", "cutoff", "max_neighbors")
    return LabelRules(**{name: options.pop(name) for name in names}, **more)


def show_progress(done: int, total: int) -> None:
    """Draw a progress bar, on a terminal only."""
    if sys.stderr.isatty():
        bar = "#" * (30 * done // total)
        click.echo(f"\r[{bar:30}] {done} of {total} structures", nl=done == total, err=True)


def report(out: str | Path, totals: Mapping[str, Counter]) -> None:
    """Print the number of structures written, what was left out, the assumptions made, and what
    looks wrong."""
    for split, counts in totals.items():
        dropped = f", {counts['dropped']} dropped" if counts["dropped"] else ""
        bad = f", {counts['bad']} bad left out" if counts["bad"] else ""
        click.echo(f"{Path(out, split)}: {counts['records']} structures{dropped}{bad}")
    info = json.loads(info_file(Path(out)).read_text(encoding="utf-8"))
    for line in (*_describe_info(info), *_describe_counts(sum(totals.values(), Counter()), info)):
        click.echo(line)
    warn_of_gradients(out, totals)


def warn_of_gradients(out: str | Path, splits: Iterable[str]) -> None:
    """Print a warning if the forces of what was written look like gradients."""
    for finding in find_gradients([Path(out, split) for split in splits]):
        click.echo(f"warning: {finding}")


def _describe_info(info: Mapping[str, Any]) -> Iterator[str]:
    if info.get("units_from") == "the sources":
        yield f"units: {info['units']}, as the sources name them"
    yield from describe_skipped(info.get("skipped_files", ()), "files")
    yield from describe_skipped(info.get("skipped", ()), "frames")
    if info.get("frames_not_in_index"):
        yield f"{info['frames_not_in_index']} frames are in no index file: left out"
    yield from (info["references"] or {}).get("remarks", ())


def _describe_counts(total: Counter, info: Mapping[str, Any]) -> Iterator[str]:
    cutoff = info["cutoff"] or CUTOFF
    for key, assumed in _ASSUMPTIONS.items():
        if total[key]:
            text = assumed.format(vacuum=describe_vacuum(total, key), cutoff=cutoff)
            yield f"{total[key]} structures {text}"
    for name in UNITS:
        if total[f"may_be_{name}"]:
            yield (
                f"{total[f'may_be_{name}']} structures with energies that were taken as eV, but "
                f"also fit all electrons in {name}: --units {name} if they are"
            )
