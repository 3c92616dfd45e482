"""``dens data convert``: convert any labelled structures that ASE reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
from ase import Atoms
from torch_geometric.data import Data

from dens.data.convert.build import Map, Shard, build, parallel_map
from dens.data.convert.command_line import (
    DataCommand,
    common_options,
    report,
    show_progress,
    structure_options,
    take_rules,
    take_units,
)
from dens.data.convert.labels import (
    LabelRules,
    read_first_units,
    read_format_units,
    settle_units,
)
from dens.data.convert.read_options import (
    FIRST_LAST,
    check_order,
    describe_labels,
    make_record_of,
    read_options,
    settle_keys,
    settle_pairs,
    settle_stress,
    take_read_options,
)
from dens.data.convert.splits import BLOCK, Splitting, make_tasks, parse_fractions, read_group
from dens.data.references import References, fit_references, load_references
from dens.data.skipped import BadFrame, count_bad, cut_frame, index_good_sources, map_good_frames
from dens.data.sources.ase import FrameSelection
from dens.data.sources.reading import ReadOptions
from dens.data.sources.search import find_sources
from dens.data.store.by_format import writer_of
from dens.data.store.lmdb import SHARD_SIZE


def convert_frames(
    rules: LabelRules,
    group_key: str | None,
    on_bad: str,
    frames: FrameSelection,
    counts: Counter,
) -> Iterator[tuple[Data, dict[str, int]] | BadFrame]:
    """Convert a selection of frames, see `dens.data.convert.build.Converter`.

    Args:
        group_key: see `Splitting`; the group of a frame becomes its sid.
        on_bad: see `dens.data.skipped.map_good_frames`.
    """

    def make_record(number: int, atoms: Atoms) -> Data | None:
        sid = name = frames.source.name
        if group_key:
            sid = read_group(group_key, atoms, own := f"{name} {number}")
            counts["own group"] += sid == own
        return make_record_of(frames.source, rules, atoms, counts, sid=sid, fid=number)

    for data in map_good_frames(make_record, frames, on_bad):
        if isinstance(data, BadFrame):
            yield data
        elif data is not None:
            yield data, rules.make_metadata(data)
    yield from cut_frame(frames)


def _read_groups(key: str, on_bad: str, frames: FrameSelection) -> list[str | None]:
    def read(number: int, atoms: Atoms) -> str:
        return read_group(key, atoms, f"{frames.source.name} {number}")

    groups = map_good_frames(read, frames, on_bad)
    return [None if isinstance(group, BadFrame) else group for group in groups]


def _read_all_groups(
    key: str, on_bad: str, sources: Sequence[FrameSelection], run_map: Map
) -> list[str | None]:
    everything = np.arange(sum(len(frames.numbers) for frames in sources))
    parts = run_map(partial(_read_groups, key, on_bad), make_tasks(sources, everything))
    return [group for part in parts for group in part]


def _read_energies(
    rules: LabelRules, on_bad: str, frames: FrameSelection
) -> list[tuple[np.ndarray, float]]:
    """Read the atomic numbers and the energy (eV) of each frame that is kept."""

    def read(number: int, atoms: Atoms) -> tuple[np.ndarray, float] | None:
        ids = {"sid": frames.source.name, "fid": number}
        data = make_record_of(frames.source, rules, atoms, Counter(), **ids)
        return data and (atoms.numbers, data.y)

    samples = map_good_frames(read, frames, on_bad)
    return [s for s in samples if s is not None and not isinstance(s, BadFrame)]


def convert(
    sources: Sequence[str | Path],
    out: str | Path,
    rules: LabelRules,
    *,
    options: ReadOptions | None = None,
    splitting: Splitting | None = None,
    pairs: str | Path | None = None,
    fit: bool = False,
    on_bad: str = "error",
    store: str = "lmdb",
    shard_size: int = SHARD_SIZE,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Counter]:
    """Convert files to a folder of records, or to one per split.

    See `dens.data.convert.build.build`.

    Args:
        sources: files and folders, see `dens.data.sources.ase.find_sources`.
        out: the folder to make.
        rules: rules for labels.
        options: which labels are read.
        pairs: see `settle_pairs`.
        splitting: by default, all frames go to `out` itself; otherwise to a folder below, by split.
        fit: fit references to the split ``train`` (or to the first one) and subtract them.
        on_bad: ``error``, or ``skip``: leave out bad frames, and files that cannot be read.
        store: ``lmdb`` or ``aselmdb``, the format to write.
        shard_size: frames per file, and the most that an interruption loses.
        workers: processes; the bytes written do not depend on it.
        progress: called with the frames done and in all.
        say: takes lines that tell what was taken of the sources and what was left out.

    Returns:
        Counts by split: frames, records, and the counts that `report` prints.

    Raises:
        ValueError: unreadable, unlabelled or unsound structures, with file and frame.
    """
    if Path(out).exists():  # before minutes of reading
        raise ValueError(f"{out} already exists: remove it or choose another output folder")
    splitting = splitting or Splitting()
    options = options or ReadOptions()
    options = replace(options, group_key=splitting.group_key, labels=rules.labels)
    found = find_sources(sources, options, say)
    with parallel_map(workers) as run_map:
        indexed, bad = index_good_sources(found, on_bad, run_map)
        if pairs == FIRST_LAST:  # the last frame of a cut file is not the end of its relaxation
            bad += [frame for frames in indexed for frame in cut_frame(frames)]
            indexed = [frames for frames in indexed if not frames.cut]
        cut = [frame for frames in indexed for frame in cut_frame(frames)]
        check_order(bad + cut, splitting, pairs)
        if rules.labels:
            indexed = settle_stress(settle_keys(list(indexed), run_map, say), say)
        indexed = settle_pairs(indexed, pairs, say)
        given = rules.units
        rules = _settle_units(indexed, rules, on_bad, run_map)
        names = {frames.source.name: len(frames.numbers) for frames in indexed}
        splits = splitting.assign(
            names, partial(_read_all_groups, splitting.group_key, on_bad, indexed, run_map)
        )
        if fit:
            rules = replace(rules, references=_fit(indexed, splits, rules, on_bad, run_map))
        info = {
            **splitting.describe(),
            "units_from": "the sources" if rules.units != given else None,
            "on_bad": on_bad,
            **({"pairs": str(pairs or options.pairs_key)} if pairs or options.pairs_key else {}),
            "frames_not_in_index": sum(names.values()) - sum(map(len, splits.values())),
            "skipped_files": list(count_bad(bad).values()),
            "sources": [{"sid": name, "frames": count} for name, count in names.items()],
        }
        return build(
            out,
            _make_shards(indexed, splits, shard_size),
            partial(convert_frames, rules, splitting.group_key, on_bad),
            rules,
            "convert",
            lambda totals: {**info, "splits": totals},
            setting=[splitting.group_key, on_bad],
            store=writer_of(store),
            run_map=run_map,
            progress=progress,
        )


def _settle_units(
    sources: Sequence[FrameSelection], rules: LabelRules, on_bad: str, run_map: Map
) -> LabelRules:
    """Take the units that formats or first frames name, unless the user gave units."""
    named = {f.source.path: read_format_units(f.source, rules.units) for f in sources}
    if rules.units is None:
        first = run_map(partial(read_first_units, on_bad), sources)
        for frames, units in zip(sources, first, strict=True):
            named[frames.source.path] = units or named[frames.source.path]
    return settle_units(rules, named)


def _make_shards(
    sources: Sequence[FrameSelection], splits: Mapping[str, np.ndarray], size: int
) -> list[Shard]:
    tasks = (
        (split, tuple(make_tasks(sources, numbers[start : start + size])))
        for split, numbers in splits.items()
        for start in range(0, len(numbers), size)
    )
    return [
        Shard(split, sum(len(frames.numbers) + bool(frames.cut) for frames in part), part)
        for split, part in tasks
    ]


def _fit(
    sources: Sequence[FrameSelection],
    splits: Mapping[str, np.ndarray],
    rules: LabelRules,
    on_bad: str,
    run_map: Map,
) -> References:
    """Fit references to the split ``train``, or to the first one."""
    chosen = "train" if "train" in splits else next(iter(splits))
    parts = run_map(partial(_read_energies, rules, on_bad), make_tasks(sources, splits[chosen]))
    samples = (sample for part in parts for sample in part)
    return fit_references(samples, f"the fit to {chosen or 'all frames'}")


@click.command("convert", cls=DataCommand)
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["by-system", "by-block"]), help="Default: none.")
@click.option("--fractions", default="train=0.9,val=0.1", show_default=True, help="Of --split.")
@click.option(
    "--block",
    default=BLOCK,
    show_default=True,
    type=click.IntRange(1),
    help="Consecutive frames that stay together, of --split by-block.",
)
@click.option(
    "--group-key", help="Key in the info of each frame that names its system, of --split by-system."
)
@click.option("--index", multiple=True, help="NAME=FILE: frame numbers of a split; repeat it.")
@click.option("--seed", default=0, show_default=True, help="Of --split.")
@click.option("--references", help="'fit', or an .npz with the key coeff: subtracted.")
@structure_options
@read_options
@common_options
def convert_command(
    sources, out, split, fractions, block, group_key, index, seed, references, pbc, **options
) -> None:
    """Convert SOURCES, files or folders that ASE reads, to LMDB or aselmdb.

    traj, (ext)xyz (also .xz, .gz, .bz2), db, aselmdb, json, vasprun.xml, OUTCAR, MD17's npz, npz of
    many molecules, folders of DeePMD-kit, and by name whatever else ASE reads with energies and
    forces. Energies, forces and stress become eV, eV/Å and eV/Å^3.

    With --labels none, the structures are taken as they are, as equilibria to learn relaxation
    from.

    Without a split, OUT itself holds the records; otherwise OUT/NAME is, for every split. A system
    is a file, or the frames with the same --group-key. Units that a file names are taken.

    A slab, periodic in two directions, becomes periodic in all three if there is vacuum above it.
    """
    files = dict(item.partition("=")[::2] for item in index)
    if len(files) < len(index) or not all(n.isidentifier() and f for n, f in files.items()):
        raise click.UsageError(f"--index must be NAME=FILE, each name once, got {' '.join(index)}")
    reading = take_read_options(options)
    fit = references == "fit"
    rules = take_rules(
        options,
        units=take_units(options),
        references=load_references(references) if references and not fit else None,
        pbc=pbc,
        labels=reading.labels,
    )
    fractions = parse_fractions(fractions) if split else None
    splitting = Splitting(split, fractions, files or None, group_key, seed, block)
    more = {"splitting": splitting, "fit": fit, "progress": show_progress, "say": click.echo}
    totals = convert(sources, out, rules, options=reading, **more, **options)
    report(out, totals)
    for line in describe_labels(totals, reading):
        click.echo(line)
