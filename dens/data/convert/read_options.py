"""Options of ``dens data convert`` that say which labels and pairs are read, and their report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from ase import Atoms
from torch_geometric.data import Data

from dens.data.convert.build import Map
from dens.data.convert.labels import LabelRules
from dens.data.convert.splits import Splitting
from dens.data.skipped import BadFrame
from dens.data.sources.ase import FrameSelection, index_source, read_frames
from dens.data.sources.reading import (
    LABELS,
    ReadOptions,
    count_labels,
    count_unkept,
    describe_counts,
    has_own_label,
    is_unconverged,
    largest_force,
    read_stress,
)
from dens.data.sources.search import Source, find_sources
from dens.data.sources.starts import START
from dens.data.store.records import add_start, add_stress, fixed_atoms
from dens.data.units import UNITS

FIRST_LAST = "first-last"
RELAXED = 0.05  # eV/Å, the usual limit of the forces where a relaxation ends
_OPTIONS = (
    click.option(
        "--pairs",
        metavar="first-last|PATH|KEY",
        help="Positions before the relaxation, stored as pos_start: the first frame of each file, "
        "whose last is the structure; a file or folder with the starts in the same order; or an "
        "array beside each structure.",
    ),
    click.option(
        "--labels",
        type=click.Choice(["energy-forces", "none"]),
        default="energy-forces",
        show_default=True,
        help="none: structures alone; energies and forces are neither needed nor kept.",
    ),
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
        click.UsageError: two options that name the energy, or a file of --pairs that is not there.
    """
    names = ("energy", "keep_unconverged", "energy_key", "forces_key", "stress_key")
    taken = {name: options.pop(name) for name in names}
    taken["labels"] = options.pop("labels") != "none"
    if taken["energy"] == "free" and taken["energy_key"]:
        raise click.UsageError("--energy free and --energy-key both name the energy: give one")
    pairs = options["pairs"]
    if pairs is None or pairs == FIRST_LAST or Path(pairs).exists():
        return ReadOptions(**taken)
    if Path(pairs).suffix or Path(pairs).name != pairs:
        raise click.UsageError(f"--pairs {pairs} does not exist")
    options["pairs"] = None
    return ReadOptions(**taken, pairs_key=pairs)


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
    start = atoms.arrays.pop(START, None)
    if found["unconverged"] and not source.options.keep_unconverged:
        counts.update(found, frames=1, dropped=1)
        return None
    stress = read_stress(atoms) if rules.labels else None
    units, volume = rules.units or UNITS["eV-A"], abs(np.linalg.det(atoms.cell.array))
    data = rules.make_record(atoms, found, sid=sid, fid=fid)
    if data is not None:
        if rules.labels:
            count_labels(atoms, source.options, found)
        else:
            count_unkept(atoms, found)
            force = largest_force(atoms, ~fixed_atoms(atoms))
            found["not relaxed"] += force is not None and force * units.force > RELAXED
        if stress is not None and volume and atoms.pbc.any():
            # a cell may have got more vacuum, over which the same virial is spread
            volume *= units.length**3 / abs(np.linalg.det(atoms.cell.array))
            add_stress(data, stress * volume * (units.energy / units.length**3))
        elif stress is not None:
            found["stress"] -= 1
            found["stress without cell"] += 1
        if start is not None:
            found["pairs" if add_start(data, start * units.length) else "no start"] += 1
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


def check_order(bad: Sequence[BadFrame], splitting: Splitting, pairs: str | Path | None) -> None:
    """Refuse to leave out files where the order of all of them counts.

    Raises:
        ValueError: names the first bad file.
    """
    order = "--index numbers the frames of all files" if splitting.index else None
    if pairs not in (None, FIRST_LAST):
        order = "--pairs matches all files in their order"
    if bad and order:
        raise ValueError(
            f"{bad[0].place}: {bad[0].reason}: {order}, so it "
            "cannot be left out by --on-bad skip: leave it out of the sources"
        )


def settle_pairs(
    sources: list[FrameSelection], pairs: str | Path | None, say: Callable[[str], None]
) -> list[FrameSelection]:
    """Give each frame the frame that it was relaxed from.

    Args:
        pairs: ``first-last``: of each file the last frame is taken, and the first is its start; or
            a file or folder with the starts, as many files as `sources`, each with as many frames.
        say: takes a line with the frames that are not taken.

    Raises:
        ValueError: a start that cannot be read, or files or frames that are not as many.
    """
    if pairs is None:
        return sources
    bare = ReadOptions(labels=False)
    if pairs == FIRST_LAST:
        ends = [
            (frames.select([len(frames.numbers) - 1]), frames.select([0])) for frames in sources
        ]
        between = sum(len(frames.numbers) - 1 for frames in sources)
        between -= sum(len(frames.numbers) > 1 for frames in sources)
        say(
            f"pairs: of {len(sources)} files the last frame is taken, and the first as its start; "
            f"{between} frames between them are left out"
        )
        starts = [replace(first, source=replace(first.source, options=bare)) for _, first in ends]
        sources = [last for last, _ in ends]
    else:
        starts = [index_source(source) for source in find_sources([pairs], bare)]
        if len(starts) != len(sources):
            raise ValueError(
                f"--pairs {pairs}: expected {len(sources)} files with starts, as many as the "
                f"sources have, got {len(starts)}"
            )
    for frames, start in zip(sources, starts, strict=True):
        if len(frames.numbers) != len(start.numbers):
            raise ValueError(
                f"{start.source.path}: expected {len(frames.numbers)} starts, one for each frame "
                f"of {frames.source.path}, got {len(start.numbers)}"
            )
    return [replace(f, starts=start) for f, start in zip(sources, starts, strict=True)]


def describe_labels(totals: Mapping[str, Counter], options: ReadOptions) -> Iterator[str]:
    """Yield one line for each choice among labels and pairs, from the counts by split."""
    total = sum(totals.values(), Counter())
    yield from describe_counts(total, options)
    if total["own group"]:
        yield f"{total['own group']} structures without a group: each is a system of its own"
    if total["pairs"] or total["no start"]:
        yield (
            f"{total['pairs']} structures with a start (pos_start); {total['no start']} have none "
            "(NaN)"
        )
    if total["not relaxed"]:
        hint = "" if total["pairs"] else f": --pairs {FIRST_LAST} takes the last frame of each file"
        yield (
            f"{total['not relaxed']} structures have a force above {RELAXED:g} eV/Å on a free "
            f"atom: not at equilibrium?{hint}"
        )
