"""Options of ``dens data convert`` that say which labels are read, and their report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import click
from ase import Atoms
from torch_geometric.data import Data

from dens.data.convert.labels import LabelRules
from dens.data.sources.ase import FrameSelection
from dens.data.sources.reading import (
    ReadOptions,
    count_labels,
    describe_counts,
    is_unconverged,
    read_stress,
)
from dens.data.sources.search import Source
from dens.data.store.records import add_stress
from dens.data.units import UNITS

_OPTIONS = (
    click.option(
        "--keep-unconverged",
        is_flag=True,
        help="Keep structures whose electronic steps did not converge (VASP: NELM reached).",
    ),
    click.option(
        "--energy",
        type=click.Choice(["sigma0", "free"]),
        default="sigma0",
        show_default=True,
        help="Energy for sigma -> 0, or the free energy, which the forces belong to.",
    ),
    click.option("--stress-key", help="Name of the stress, or virial, in the files."),
    click.option("--forces-key", help="Name of the forces, such as REF_forces."),
    click.option("--energy-key", help="Name of the energy, such as REF_energy or dft_energy."),
)


def read_options(command: Callable) -> Callable:
    """Add the options that say which labels are read to a command."""
    for option in _OPTIONS:
        command = option(command)
    return command


def take_read_options(options: dict) -> ReadOptions:
    """Take the options for reading out of a command's options.

    Raises:
        click.UsageError: two options that name the energy.
    """
    names = ("energy", "keep_unconverged", "energy_key", "forces_key", "stress_key")
    taken = {name: options.pop(name) for name in names}
    if taken["energy"] == "free" and taken["energy_key"]:
        raise click.UsageError("--energy free and --energy-key both name the energy: give one")
    return ReadOptions(**taken)


def make_record_of(
    source: Source, rules: LabelRules, atoms: Atoms, counts: Counter, *, sid: str, fid: int
) -> Data | None:
    """Make the record of a frame, with its stress if it has one.

    Args:
        source: of the frame, with the options for reading it.
        rules, atoms, counts, sid, fid: see `LabelRules.make_record`.

    Returns:
        None if it is left out: too large a force, or not converged.

    Raises:
        ValueError: see `LabelRules.make_record`; or a stress that is not finite.
    """
    found: Counter = Counter(unconverged=int(is_unconverged(atoms)))
    if found["unconverged"] and not source.options.keep_unconverged:
        counts.update(found, frames=1, dropped=1)
        return None
    stress = read_stress(atoms)
    units = rules.units or UNITS["eV-A"]
    data = rules.make_record(atoms, found, sid=sid, fid=fid)
    if data is not None:
        count_labels(atoms, source.options, found)
        if stress is not None:
            add_stress(data, stress * (units.energy / units.length**3))
    counts.update(found)
    return data


def settle_stress(
    sources: list[FrameSelection], say: Callable[[str], None]
) -> list[FrameSelection]:
    """Read the stress of no frame if some have none: the records of a set have the same fields.

    Args:
        say: takes a line with the number of structures that lose it.
    """
    total = sum(len(frames.numbers) for frames in sources)
    stressed = sum(frames.with_stress for frames in sources)
    if stressed in (0, total):
        return sources
    say(f"the stress of {stressed} structures is not kept, since {total - stressed} have none")
    return [
        replace(f, source=replace(f.source, options=replace(f.source.options, keep_stress=False)))
        for f in sources
    ]


def describe_labels(totals: Mapping[str, Counter], options: ReadOptions) -> Iterator[str]:
    """Yield one line for each choice among the labels, from the counts by split."""
    yield from describe_counts(sum(totals.values(), Counter()), options)
