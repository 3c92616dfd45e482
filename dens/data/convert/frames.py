"""``dens data convert``: convert any labelled structures that ASE reads to LMDB."""

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
from dens.data.convert.command_line import common_options, report, show_progress, take_rules
from dens.data.convert.labels import LabelRules
from dens.data.convert.splits import BLOCK, Splitting, parse_fractions
from dens.data.references import References, fit_references, load_references
from dens.data.sources.ase import (
    FrameSelection,
    Source,
    find_sources,
    index_source,
    map_frames,
    read_units,
)
from dens.data.store.lmdb import SHARD_SIZE
from dens.data.units import parse_units

CHUNK = 256  # frames per task
WHOLE_CHUNK = 4096  # frames per task of a file that is read as a whole for any of its frames


def convert_frames(
    rules: LabelRules, group_key: str | None, frames: FrameSelection, counts: Counter
) -> Iterator[tuple[Data, dict[str, int]]]:
    """Convert a selection of frames, see `dens.data.convert.build.Converter`.

    Args:
        group_key: see `Splitting`; the group of a frame becomes its sid.
    """

    def make_record(number: int, atoms: Atoms) -> Data | None:
        sid = _read_group(atoms, group_key) if group_key else frames.source.name
        return rules.make_record(atoms, counts, sid=sid, fid=number)

    for data in map_frames(make_record, frames):
        if data is not None:
            yield data, rules.make_metadata(data)


def _read_group(atoms: Atoms, key: str) -> str:
    if key not in atoms.info:
        known = ", ".join(map(str, atoms.info)) or "nothing"
        raise ValueError(f"expected the key {key!r} in its info, which has {known}")
    return str(atoms.info[key])


def _read_groups(key: str, frames: FrameSelection) -> list[str]:
    return list(map_frames(lambda number, atoms: _read_group(atoms, key), frames))


def _read_all_groups(key: str, sources: Sequence[FrameSelection], run_map: Map) -> list[str]:
    everything = np.arange(sum(len(frames.numbers) for frames in sources))
    parts = run_map(partial(_read_groups, key), make_tasks(sources, everything))
    return [group for part in parts for group in part]


def _read_energies(rules: LabelRules, frames: FrameSelection) -> list[tuple[np.ndarray, float]]:
    """Read the atomic numbers and the energy (eV) of each frame that is kept."""

    def read(number: int, atoms: Atoms) -> tuple[np.ndarray, float] | None:
        data = rules.make_record(atoms, Counter(), sid=frames.source.name, fid=number)
        return data and (atoms.numbers, data.y)

    return [sample for sample in map_frames(read, frames) if sample is not None]


def make_tasks(sources: Sequence[FrameSelection], numbers: np.ndarray) -> Iterator[FrameSelection]:
    """Divide frames, given by ascending numbers over all sources, into tasks of one source each."""
    end = 0
    for frames in sources:
        start, end = end, end + len(frames.numbers)
        low, high = np.searchsorted(numbers, [start, end])
        own = (numbers[low:high] - start).tolist()
        source = frames.source
        whole = source.is_compressed or source.kind in ("npz", "vasp", "ase")
        chunk = WHOLE_CHUNK if whole else CHUNK
        for first in range(0, len(own), chunk):
            yield frames.select(own[first : first + chunk])


def convert(
    sources: Sequence[str | Path],
    out: str | Path,
    rules: LabelRules,
    *,
    splitting: Splitting | None = None,
    fit: bool = False,
    shard_size: int = SHARD_SIZE,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Counter]:
    """Convert files to an LMDB folder, or to one per split. See `dens.data.convert.build.build`.

    Args:
        sources: files and folders, see `dens.data.sources.ase.find_sources`.
        out: the folder to make.
        rules: rules for labels.
        splitting: by default, all frames go to `out` itself; otherwise to a folder below, by split.
        fit: fit references to the split ``train`` (or to the first one) and subtract them.
        shard_size: frames per LMDB file, and the most that an interruption loses.
        workers: processes; the bytes written do not depend on it.
        progress: called with the frames done and in all.

    Returns:
        Counts by split: frames, records, and the counts that `report` prints.

    Raises:
        ValueError: unreadable, unlabelled or unsound structures, with file and frame.
    """
    if Path(out).exists():  # before minutes of reading
        raise ValueError(f"{out} already exists: remove it or choose another output folder")
    splitting = splitting or Splitting()
    found = find_sources(sources)
    rules = _settle_units(found, rules)
    with parallel_map(workers) as run_map:
        indexed = list(run_map(index_source, found))
        names = {frames.source.name: len(frames.numbers) for frames in indexed}
        splits = splitting.assign(
            names, partial(_read_all_groups, splitting.group_key, indexed, run_map)
        )
        if fit:
            rules = replace(rules, references=_fit(indexed, splits, rules, run_map))
        files = [{"sid": name, "frames": count} for name, count in names.items()]
        return build(
            out,
            _make_shards(indexed, splits, shard_size),
            partial(convert_frames, rules, splitting.group_key),
            rules,
            "convert",
            lambda totals: {**splitting.describe(), "splits": totals, "sources": files},
            setting=splitting.group_key,
            run_map=run_map,
            progress=progress,
        )


def _make_shards(
    sources: Sequence[FrameSelection], splits: Mapping[str, np.ndarray], size: int
) -> list[Shard]:
    return [
        Shard(split, len(part), tuple(make_tasks(sources, part)))
        for split, numbers in splits.items()
        for part in (numbers[start : start + size] for start in range(0, len(numbers), size))
    ]


def _fit(
    sources: Sequence[FrameSelection],
    splits: Mapping[str, np.ndarray],
    rules: LabelRules,
    run_map: Map,
) -> References:
    """Fit references to the split ``train``, or to the first one."""
    chosen = "train" if "train" in splits else next(iter(splits))
    parts = run_map(partial(_read_energies, rules), make_tasks(sources, splits[chosen]))
    samples = (sample for part in parts for sample in part)
    return fit_references(samples, f"the fit to {chosen or 'all frames'}")


def _settle_units(sources: Sequence[Source], rules: LabelRules) -> LabelRules:
    """Take the units that the files name, unless the user gave units; refuse contradictions."""
    named = {}
    for source in sources:
        name = read_units(source)
        if source.kind == "npz" and name is None and rules.units is None:
            raise ValueError(f"{source.path}: an .npz does not tell its units: give --units")
        known = "eV-A" if source.kind == "vasp" else name
        if known and rules.units and rules.units.name != known:
            raise ValueError(
                f"{source.path}: its units are {known}, but --units says {rules.units.name}"
            )
        named[name or "unnamed units"] = source.path
    if rules.units or named.keys() == {"unnamed units"}:
        return rules
    if len(named) > 1:
        mixed = ", ".join(f"{name} in {path}" for name, path in named.items())
        raise ValueError(f"expected sources in the same units, got {mixed}")
    return replace(rules, units=parse_units(*named))


@click.command("convert")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--units", help="eV-A (default), kcal/mol, meV, Hartree-Bohr.")
@click.option("--split", type=click.Choice(["by-system", "by-block"]), help="Default: none.")
@click.option("--fractions", default="train=0.9,val=0.1", show_default=True)
@click.option(
    "--block",
    default=BLOCK,
    show_default=True,
    type=click.IntRange(1),
    help="Consecutive frames that stay together, of --split by-block.",
)
@click.option("--group-key", help="Key in the info of each frame that names its system.")
@click.option("--index", multiple=True, help="NAME=FILE: frame numbers of a split; repeat it.")
@click.option("--seed", default=0, show_default=True)
@click.option("--references", help="'fit', or an .npz with the key coeff: subtracted.")
@common_options
def convert_command(
    sources, out, units, split, fractions, block, group_key, index, seed, references, **options
) -> None:
    """Convert SOURCES, files or folders that ASE reads, to LMDB.

    traj, (ext)xyz (also .xz, .gz, .bz2), db, aselmdb, vasprun.xml, OUTCAR, MD17's npz, and by name
    whatever else ASE reads with energies and forces. Energies and forces become eV and eV/Å.

    Without a split, OUT itself is the LMDB folder; otherwise OUT/NAME is, for every split. A system
    is a file, or the frames with the same --group-key.
    """
    if split and index:
        raise click.UsageError("--split and --index are two ways to say the same: give one")
    if group_key and split == "by-block":
        raise click.UsageError("--group-key names systems: it does not go with --split by-block")
    files = dict(item.partition("=")[::2] for item in index)
    if len(files) < len(index) or not all(n.isidentifier() and f for n, f in files.items()):
        raise click.UsageError(f"--index must be NAME=FILE, each name once, got {' '.join(index)}")
    fit = references == "fit"
    rules = take_rules(
        options,
        units=parse_units(units) if units else None,
        references=load_references(references) if references and not fit else None,
    )
    fractions = parse_fractions(fractions) if split else None
    splitting = Splitting(split, fractions, files or None, group_key, seed, block)
    totals = convert(
        sources, out, rules, splitting=splitting, fit=fit, progress=show_progress, **options
    )
    report(out, totals)
