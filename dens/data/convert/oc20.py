"""``dens data oc20``: OC20's S2EF download, or LMDB folders made of it, to LMDB.

**The download**, after uncompressing or as it came: pairs ``N.extxyz[.xz]`` and ``N.txt[.xz]``.
Line ``i`` of the text, ``random1234,frame56,-101.2``, gives the system, the frame and the reference
energy (eV) of frame ``i`` of the structures. The sid is the number in the system's name, the fid
that in the frame's.

**LMDB folders** made of it earlier are copied with the mark ``md`` added, see
`dens.data.convert.oc20_shards`.

**Relaxation or molecular dynamics** decides whether All+MD may corrupt a structure. The origin
that tells it (see `dens.data.sources.oc20`) is, in the download, the path of a file from the given
folder on (its own name counts, those above it do not), or the system's name in its line of text.
``--md yes`` and ``--md no`` go before that, for everything in the given folders.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from dens.data.convert.build import Piece, Prepared, build, mapper
from dens.data.convert.frames import naming_frame
from dens.data.convert.info import check_boundaries, report, versions, write_info
from dens.data.convert.labels import Recipe
from dens.data.convert.oc20_shards import Shard, find_shards, mark
from dens.data.convert.options import SHARD_SIZE, common_options, recipe_from, show_progress
from dens.data.sources.ase import Source, index_source, make_source, read_frames
from dens.data.sources.oc20 import read_lines, read_text, says_md


@dataclass(frozen=True)
class Pair:
    """A pair of files of the download, with the origin of its structures; ``md`` None means that
    the origin tells."""

    structures: Source
    text: Source
    origin: str
    md: bool | None


@dataclass(frozen=True)
class ConvertOc20:
    """Makes the records of a task: adsorption energies with ``ref_energy``, else as they are."""

    recipe: Recipe
    ref_energy: bool

    def __call__(self, task: Pair | Shard) -> Prepared:
        return self._convert(task) if isinstance(task, Pair) else mark(task)

    def _convert(self, pair: Pair) -> Prepared:
        prepared = Prepared()
        lines = read_lines(pair.text.path)
        index = index_source(pair.structures)
        if len(lines) != index.count:
            raise ValueError(
                f"{pair.text.path}: expected a line for each of the {index.count} frames of "
                f"{Path(pair.structures.path).name}, got {len(lines)}"
            )
        by_path = says_md(pair.origin)
        for number, atoms in read_frames(index.frames(range(index.count))):
            line = lines[number]
            with naming_frame(pair.structures.path, number):
                if self.ref_energy and line.reference is None:
                    raise ValueError("expected a reference energy in its line of text, got none")
                reference = line.reference if self.ref_energy else 0.0
                md = by_path or line.md if pair.md is None else pair.md
                self.recipe.add(
                    prepared, atoms, sid=line.sid, fid=line.fid, reference=reference, md=md
                )
        prepared.counts["md"] = sum(entry["md"] for entry in prepared.metadata)
        return prepared


def find_pairs(folder: Path, md: bool | None) -> list[tuple[Pair, int]]:
    """The pairs of files in and below a folder, in the order of their numbers, with the number of
    frames of each.

    Raises:
        ValueError: a file without its partner.
    """
    partners: dict[Path, dict[str, Path]] = {}
    for path in sorted(folder.rglob("*")):  # so that an unpacked file goes before its .xz
        match = re.fullmatch(r"(.+)\.(extxyz|txt)(\.xz)?", path.name)
        if match and path.is_file():
            partners.setdefault(path.with_name(match[1]), {}).setdefault(match[2], path)
    pairs = []
    for stem in sorted(partners, key=lambda p: (p.parent, not p.name.isdigit(), len(p.name), p)):
        files = partners[stem]
        if "extxyz" in files or stem.name.isdigit():  # other texts are none of ours
            missing = {"extxyz", "txt"} - files.keys()
            if missing:
                raise ValueError(
                    f"{stem}.{missing.pop()} is missing: expected {stem.name}.extxyz "
                    f"and {stem.name}.txt (or .xz) side by side"
                )
            origin = str(Path(folder.resolve().name, files["extxyz"].relative_to(folder)))
            structures, text = (make_source(files[kind], origin) for kind in ("extxyz", "txt"))
            pairs.append((Pair(structures, text, origin, md), len(read_text(text.path))))
    return pairs


def convert_oc20(
    folders: Sequence[str | Path],
    out: str | Path,
    recipe: Recipe,
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
        recipe: how structures become records; LMDB records stay as they are but for ``md``.
        ref_energy: subtract the reference energies of the text files.
        md: what all structures are; None: as their origins say.
        data_log: the folder of the logs of LMDB files; by default beside them.
        shard_size: see `dens.data.convert.frames.convert`; a pair of files is never divided.
        workers: processes; the bytes written do not depend on it.
        progress: called with the frames done and in all.

    Returns:
        Counts, under "".

    Raises:
        ValueError: whatever does not fit, in one line.
    """
    if Path(out).exists():  # before minutes of reading
        raise ValueError(f"{out} already exists: remove it or choose another output folder")
    counted = [task for f in map(Path, folders) for task in _find(f, ref_energy, data_log, md)]
    total = sum(frames for _, frames in counted)

    def finish(folder: Path, totals: dict[str, Counter]) -> None:
        check_boundaries(totals)
        energy = (
            "minus the reference energy of the text files" if ref_energy else "as in the source"
        )
        sources = [{"folder": Path(f).resolve().name} for f in folders]
        info = {**recipe.describe(), "energy": energy, "md": md, **totals[""], "sources": sources}
        write_info(folder, "oc20", info, None)

    with mapper(workers) as mapped:
        return build(
            out,
            _group(counted, shard_size),
            ConvertOc20(recipe, ref_energy),
            settings=json.dumps([versions(), recipe.describe(), ref_energy]),
            mapped=mapped,
            finish=finish,
            progress=lambda done: progress(done, total),
        )


def _find(folder: Path, ref_energy: bool, data_log: Path | None, md: bool | None) -> list:
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of OC20 data")
    if any(folder.glob("*.lmdb")):
        if ref_energy:
            raise ValueError(f"{folder}: --ref-energy is for extxyz, but this has LMDB files")
        return find_shards(folder, data_log, md)
    pairs = find_pairs(folder, md)
    if not pairs:
        raise ValueError(f"{folder}: expected *.extxyz and *.txt (or .xz), or *.lmdb, found none")
    return pairs


def _group(counted: list[tuple[Pair | Shard, int]], shard_size: int) -> list[Piece]:
    """Consecutive tasks with at most that many frames, or a single one."""
    pieces: list[list] = [[]]
    frames = 0
    for task, count in counted:
        if pieces[-1] and frames + count > shard_size:
            pieces.append([])
            frames = 0
        pieces[-1].append(task)
        frames += count
    return [Piece("", tuple(piece)) for piece in pieces]


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

    A folder holds N.extxyz and N.txt, as they came (.xz) or uncompressed; or data.NNNN.lmdb, which
    only get the mark whether a structure comes from MD. By default that is told by names: those
    with the word md (s2ef_md/0.extxyz; a line of data_log.NNNN.txt beside LMDB files).
    """
    recipe = recipe_from(options)
    totals = convert_oc20(
        folders,
        out,
        recipe,
        ref_energy=ref_energy,
        md=md and md == "yes",
        data_log=data_log,
        progress=show_progress,
        **options,
    )
    report(out, totals)
    counts = totals[""]
    click.echo(f"{counts['md']} of them from MD, {counts['records'] - counts['md']} not")
