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
import lmdb
from ase import Atoms
from torch_geometric.data import Data

from dens.data.convert.build import Shard, build, parallel_map
from dens.data.convert.command_line import (
    DataCommand,
    common_options,
    report,
    show_progress,
    take_rules,
)
from dens.data.convert.labels import LabelRules
from dens.data.skipped import BadFrame, all_bad, bad_file, count_bad, cut_frame, map_good_frames
from dens.data.sources.ase import FrameSelection, index_source
from dens.data.sources.oc20 import (
    Line,
    LmdbRecords,
    Pair,
    find_lmdb_records,
    find_pairs,
    read_lines,
    read_text,
    says_md,
)
from dens.data.store.by_format import writer_of
from dens.data.store.lmdb import SHARD_SIZE, open_lmdb
from dens.safe.pickles import load_record

_SYSTEM = re.compile(r"random(\d+)")


@dataclass(frozen=True)
class Oc20Converter:
    """Converter of pairs of files and of LMDB records; ``ref_energy`` makes adsorption energies,
    ``on_bad`` is that of `dens.data.skipped.map_good_frames`."""

    rules: LabelRules
    ref_energy: bool
    on_bad: str

    def __call__(
        self, task: Pair | LmdbRecords, counts: Counter
    ) -> Iterator[tuple[Data, dict[str, int]] | BadFrame]:
        is_pair = isinstance(task, Pair)
        n_md = 0
        results = self._convert(task, counts) if is_pair else _mark(task, counts, self.on_bad)
        for data in results:
            if isinstance(data, BadFrame):
                yield data
                continue
            n_md += data.md
            yield data, self.rules.make_metadata(data) if is_pair else {"md": data.md}
        counts["md"] += n_md

    def _convert(self, pair: Pair, counts: Counter) -> Iterator[Data | BadFrame]:
        try:
            lines, frames = self._open(pair)
        except ValueError as error:
            if self.on_bad == "error":
                raise
            yield bad_file(pair.structures.path, error, pair.count)
            return
        by_path = says_md(pair.origin)

        def make_record(number: int, atoms: Atoms) -> Data | None:
            line = lines[number]
            if self.ref_energy and line.reference is None:
                raise ValueError("expected a reference energy in its line of text, got none")
            reference = line.reference if self.ref_energy else 0.0
            md = by_path or line.md if pair.md is None else pair.md
            ids = {"sid": line.sid, "fid": line.fid}
            return self.rules.make_record(atoms, counts, **ids, reference=reference, md=md)

        results = map_good_frames(make_record, frames, self.on_bad)
        yield from (data for data in results if data is not None)
        for bad in cut_frame(frames):
            yield bad._replace(frames=len(lines) - len(frames.numbers))

    def _open(self, pair: Pair) -> tuple[list[Line], FrameSelection]:
        lines = read_lines(pair.text.path)
        frames = index_source(pair.structures, allow_cut=self.on_bad == "skip")
        lacking = len(lines) - len(frames.numbers)
        if lacking < 1 if frames.cut else lacking:
            raise ValueError(
                f"{pair.text.path}: expected a line for each of the {len(frames.numbers)} frames "
                f"of {Path(pair.structures.path).name}, got {len(lines)}"
            )
        return lines, frames


def _mark(records: LmdbRecords, counts: Counter, on_bad: str) -> Iterator[Data | BadFrame]:
    """Read LMDB records and set ``md``."""
    path, lines = records.file.path, records.log and read_text(records.log.path)
    with open_lmdb(path) as environment, environment.begin() as transaction:
        for key in range(records.start, records.stop):
            try:
                data = _read_record(transaction, key, lines)
            except ValueError as error:
                if on_bad == "error":
                    raise ValueError(f"{path}, frame {key}: {error}") from error
                yield BadFrame(f"{path}, frame {key}", str(error))
                continue
            md = int(says_md(lines[key]) if records.md is None else records.md)
            counts["frames"] += 1
            if "md" in data and int(data.md) != md:
                counts["md_replaced"] += 1
            data.md = md
            yield data


def _read_record(transaction: lmdb.Transaction, key: int, lines: list[str] | None) -> Data:
    fields = load_record(transaction.get(str(key).encode())).to_dict()
    data = Data(**{name: value for name, value in fields.items() if value is not None})
    if lines:
        _check_system(lines[key], data)
    return data


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
    on_bad: str = "error",
    store: str = "lmdb",
    shard_size: int = SHARD_SIZE,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Counter]:
    """Convert OC20 data, as `dens.data.convert.oc20` describes them, to one folder.

    Args:
        folders: of the download, or with LMDB files.
        out: the folder to make.
        rules: rules for labels; LMDB records stay as they are except for ``md``.
        ref_energy: subtract the reference energies of the text files.
        md: whether all structures come from MD; None: as their origins say.
        data_log: the folder of the logs of LMDB files; by default beside them.
        on_bad: ``error``, or ``skip``: leave out bad frames, files that are cut off or lack their
            partner, and pairs of files that do not fit.
        store, shard_size: see `dens.data.convert.frames.convert`; a pair of files is never divided.
        workers: processes; the bytes written do not depend on it.
        progress: called with the frames done and in all.
        say: takes a line about files that are there twice, packed and unpacked.

    Returns:
        Counts, under "".

    Raises:
        ValueError: anything wrong with the data, in one line.
    """
    if Path(out).exists():  # before minutes of reading
        raise ValueError(f"{out} already exists: remove it or choose another output folder")
    given = {"ref-energy": ref_energy, "cutoff": rules.cutoff, "max-force": rules.max_force}
    for_pairs = [f"--{name}" for name, value in given.items() if value]
    bad: list[BadFrame] = []

    def refuse(path: Path, error: ValueError) -> None:
        if on_bad == "error":
            raise error
        bad.append(bad_file(str(path), error))

    tasks = [
        task for f in map(Path, folders) for task in _find(f, for_pairs, data_log, md, refuse, say)
    ]
    if bad and not tasks:
        raise all_bad(bad)
    energy = "minus the reference energy of the text files" if ref_energy else "as in the source"
    sources = [{"folder": Path(f).resolve().name} for f in folders]
    with parallel_map(workers) as run_map:
        return build(
            out,
            _group(tasks, shard_size),
            Oc20Converter(rules, ref_energy, on_bad),
            rules,
            "oc20",
            lambda totals: {
                "energy": energy,
                "md": md,
                "on_bad": on_bad,
                "skipped_files": list(count_bad(bad).values()),
                **totals[""],
                "sources": sources,
            },
            setting=[ref_energy, on_bad],
            store=writer_of(store),
            run_map=run_map,
            progress=progress,
        )


def _find(
    folder: Path,
    for_pairs: Sequence[str],
    data_log: Path | None,
    md: bool | None,
    refuse: Callable[[Path, ValueError], None],
    say: Callable[[str], None],
) -> Sequence[Pair | LmdbRecords]:
    """Find the tasks of a folder, and call `refuse` with its bad files.

    Raises:
        ValueError: none of these files; options that are for the other kind of files.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of OC20 data")
    if any(folder.glob("*.lmdb")):
        if for_pairs:
            names = ", ".join(for_pairs)
            raise ValueError(
                f"{folder}: {names} is for extxyz, but this has LMDB files, whose records stay as "
                "they are"
            )
        return find_lmdb_records(folder, data_log, md, refuse)
    pairs = find_pairs(folder, md, refuse, say)
    if data_log is not None:
        raise ValueError(
            f"{folder}: --data-log is for LMDB files, but this has extxyz and their text"
        )
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


@click.command("oc20", cls=DataCommand)
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--ref-energy", is_flag=True, help="Adsorption energies: subtract the references.")
@click.option("--md", type=click.Choice(["yes", "no"]), help="All of it is, or is not, from MD.")
@click.option(
    "--data-log", type=click.Path(path_type=Path), help="Folder of LMDB files' logs, if elsewhere."
)
@common_options
def oc20_command(folders, out, ref_energy, md, data_log, **options) -> None:
    """Convert OC20's S2EF download in FOLDERS to the folder OUT.

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
        say=click.echo,
        **options,
    )
    report(out, totals)
    counts = totals[""]
    click.echo(f"{counts['md']} of them from MD, {counts['records'] - counts['md']} not")
