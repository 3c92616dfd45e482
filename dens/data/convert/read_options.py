"""Options of ``dens data convert`` that say which labels are read, and their report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import click
from ase import Atoms
from torch_geometric.data import Data

from dens.data.convert.build import Map
from dens.data.convert.labels import LabelRules
from dens.data.sources.ase import FrameSelection, index_source, read_frames
from dens.data.sources.reading import (
    LABELS,
    ReadOptions,
    count_labels,
    describe_counts,
    has_own_label,
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


def settle_keys(
    sources: list[FrameSelection], run_map: Map, say: Callable[[str], None]
) -> list[FrameSelection]:
    """Let files without a named key keep their own label, if other files have the key.

    So one command converts files whose keys differ, such as VASP runs beside extended XYZ. A file
    is judged by its first frame. A key that no file has stays an error when frames are read.

    Args:
        say: takes a line with the structures and files that keep their own label.
    """
    if len(sources) < 2 or not any(map(sources[0].source.options.key, LABELS)):
        return sources
    lacking = list(run_map(find_lacking, sources))
    for label in LABELS:
        without = [i for i, labels in enumerate(lacking) if label in labels]
        if not without or len(without) == len(sources):
            continue
        files = ", ".join(sources[i].source.name for i in without[:3]) + ", ..." * (
            len(without) > 3
        )
        count = sum(len(sources[i].numbers) for i in without)
        key = sources[0].source.options.key(label)
        say(f"{count} structures of files without {key} keep their own {label}: {files}")
        for i in without:
            source = sources[i].source
            options = replace(source.options, **{f"{label}_key": None})
            sources[i] = replace(sources[i], source=replace(source, options=options))
            if label == "stress":
                sources[i] = index_source(sources[i].source, bool(sources[i].cut))
    return sources


def find_lacking(frames: FrameSelection) -> tuple[str, ...]:
    """List the labels with a named key that the first frame of a file lacks, but for its own label.

    A file that cannot be read lacks nothing here: reading it later tells its error.
    """
    options = frames.source.options
    if frames.source.kind == "npz":
        return ()
    own = replace(options, **{f"{label}_key": None for label in LABELS})
    first = replace(frames, source=replace(frames.source, options=own)).select([0])
    try:
        (_, atoms), *_ = read_frames(first)
    except ValueError:
        return ()
    return tuple(label for label in LABELS if has_own_label(atoms, label, options.key(label)))


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
