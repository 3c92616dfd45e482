"""``dens data oc20``: convert OC20's S2EF download, or LMDB folders made of it, to LMDB.

**The download**, uncompressed or not: pairs ``N.extxyz[.xz]`` and ``N.txt[.xz]``. Line ``i`` of the
text, ``random1234,frame56,-101.2``, gives the system, the frame and the reference energy (eV) of
frame ``i`` of the structures. The sid is the number in the system's name, the fid that in the
frame's.

**LMDB folders** made of it earlier are copied with the mark ``md`` added.

**Relaxation or molecular dynamics** decides whether All+MD may corrupt a structure. The origin
tells it (see `dens.data.sources.oc20`): in the download, the path of a file below the given folder,
including the folder's own name, or the system's name in its line of text; for LMDB files, the line
of the log. ``--md yes`` and ``--md no`` override it for everything in the given folders.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from ase import Atoms
from torch_geometric.data import Data

from dens.data.convert.build import Shard, build, parallel_map
from dens.data.convert.command_line import common_options, report, show_progress, take_rules
from dens.data.convert.labels import LabelRules
from dens.data.sources.ase import index_source, map_frames, naming_frame
from dens.data.sources.oc20 import (
    LmdbRecords,
    Pair,
    find_lmdb_records,
    find_pairs,
    read_lines,
    read_text,
    says_md,
)
from dens.data.store.lmdb import SHARD_SIZE, open_lmdb
from dens.safe.pickles import load_record

_SYSTEM = re.compile(r"random(\d+)")


@dataclass(frozen=True)
class Oc20Converter:
    """Converter of pairs of files and of LMDB records; ``ref_energy`` makes adsorption energies."""

    rules: LabelRules
    ref_energy: bool

    def __call__(
        self, task: Pair | LmdbRecords, counts: Counter
    ) -> Iterator[tuple[Data, dict[str, int]]]:
        is_pair = isinstance(task, Pair)
        n_md = 0
        for data in self._convert(task, counts) if is_pair else _mark(task, counts):
            n_md += data.md
            yield data, self.rules.make_metadata(data) if is_pair else {"md": data.md}
        counts["md"] += n_md

    def _convert(self, pair: Pair, counts: Counter) -> Iterator[Data]:
        lines = read_lines(pair.text.path)
        frames = index_source(pair.structures)
        if len(lines) != len(frames.numbers):
            raise ValueError(
                f"{pair.text.path}: expected a line for each of the {len(frames.numbers)} frames "
                f"of {Path(pair.structures.path).name}, got {len(lines)}"
            )
        by_path = says_md(pair.origin)

        def make_record(number: int, atoms: Atoms) -> Data | None:
            line = lines[number]
            if self.ref_energy and line.reference is None:
                raise ValueError("expected a reference energy in its line of text, got none")
            reference = line.reference if self.ref_energy else 0.0
            md = by_path or line.md if pair.md is None else pair.md
            ids = {"sid": line.sid, "fid": line.fid}
            return self.rules.make_record(atoms, counts, **ids, reference=reference, md=md)

        return (data for data in map_frames(make_record, frames) if data is not None)


def _mark(records: LmdbRecords, counts: Counter) -> Iterator[Data]:
    """Read LMDB records and set ``md``."""
    path, lines = records.file.path, records.log and read_text(records.log.path)
    with open_lmdb(path) as environment, environment.begin() as transaction:
        for key in range(records.start, records.stop):
            with naming_frame(path, key):
                fields = load_record(transaction.get(str(key).encode())).to_dict()
                data = Data(**{name: value for name, value in fields.items() if value is not None})
                if lines:
                    _check_system(lines[key], data)
            data.md = int(says_md(lines[key]) if records.md is None else records.md)
            counts["frames"] += 1
            yield data


def _check_system(line: str, data: Data) -> None:
    named = _SYSTEM.search(line)
    if named and "sid" in data and int(named[1]) != int(data.sid):
        raise ValueError(f"its sid is {int(data.sid)}, but its line of the log is {line!r}")


def convert_oc20(
    folders: Sequence[str | Path],
    out: str | Path,
    rules: LabelRules,
    *,
    ref_energy: bool = False,
    md: bool | None = None,
    data_log: Path | None = None,
    shard_size: int = SHARD_SIZE,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Counter]:
    """Convert OC20 data, as `dens.data.convert.oc20` describes them, to one LMDB folder.

    Args:
        folders: of the download, or with LMDB files.
        out: the folder to make.
        rules: rules for labels; LMDB records stay as they are except for ``md``.
        ref_energy: subtract the reference energies of the text files.
        md: whether all structures come from MD; None: as their origins say.
        data_log: the folder of the logs of LMDB files; by default beside them.
        shard_size: see `dens.data.convert.frames.convert`; a pair of files is never divided.
        workers: processes; the bytes written do not depend on it.
        progress: called with the frames done and in all.

    Returns:
        Counts, under "".

    Raises:
        ValueError: anything wrong with the data, in one line.
    """
    if Path(out).exists():  # before minutes of reading
        raise ValueError(f"{out} already exists: remove it or choose another output folder")
    tasks = [task for f in map(Path, folders) for task in _find(f, ref_energy, data_log, md)]

    energy = "minus the reference energy of the text files" if ref_energy else "as in the source"
    sources = [{"folder": Path(f).resolve().name} for f in folders]
    with parallel_map(workers) as run_map:
        return build(
            out,
            _group(tasks, shard_size),
            Oc20Converter(rules, ref_energy),
            rules,
            "oc20",
            lambda totals: {"energy": energy, "md": md, **totals[""], "sources": sources},
            setting=ref_energy,
            run_map=run_map,
            progress=progress,
        )


def _find(
    folder: Path, ref_energy: bool, data_log: Path | None, md: bool | None
) -> Sequence[Pair | LmdbRecords]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of OC20 data")
    if any(folder.glob("*.lmdb")):
        if ref_energy:
            raise ValueError(f"{folder}: --ref-energy is for extxyz, but this has LMDB files")
        return find_lmdb_records(folder, data_log, md)
    pairs = find_pairs(folder, md)
    if not pairs:
        raise ValueError(f"{folder}: expected *.extxyz and *.txt (or .xz), or *.lmdb, found none")
    return pairs


def _group(tasks: Sequence[Pair | LmdbRecords], shard_size: int) -> list[Shard]:
    """Group consecutive tasks into shards of at most `shard_size` frames, or of a single task."""
    groups: list[list] = []
    frames = 0
    for task in tasks:
        frames += task.count
        if not groups or frames > shard_size:
            groups.append([])
            frames = task.count
        groups[-1].append(task)
    return [Shard("", sum(task.count for task in group), tuple(group)) for group in groups]


@click.command("oc20")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--ref-energy", is_flag=True, help="Adsorption energies: subtract the references.")
@click.option("--md", type=click.Choice(["yes", "no"]), help="All of it is, or is not, from MD.")
@click.option(
    "--data-log", type=click.Path(path_type=Path), help="Folder of LMDB files' logs, if elsewhere."
)
@common_options
def oc20_command(folders, out, ref_energy, md, data_log, **options) -> None:
    """Convert OC20's S2EF download in FOLDERS to the LMDB folder OUT.

    A folder holds N.extxyz and N.txt, compressed (.xz) or not; or data.NNNN.lmdb, which only get
    the mark whether a structure comes from MD. By default, names with the word md tell that:
    s2ef_md/0.extxyz; or a line of data_log.NNNN.txt beside LMDB files.
    """
    rules = take_rules(options)
    totals = convert_oc20(
        folders,
        out,
        rules,
        ref_energy=ref_energy,
        md=md and md == "yes",
        data_log=data_log,
        progress=show_progress,
        **options,
    )
    report(out, totals)
    counts = totals[""]
    click.echo(f"{counts['md']} of them from MD, {counts['records'] - counts['md']} not")
