"""``dens data convert``: whatever ASE reads with energies and forces, to LMDB."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ase
import click
import numpy as np

from dens.data.convert.build import Mapped, Piece, Prepared, build, mapper
from dens.data.convert.info import check_boundaries, report, versions, write_info
from dens.data.convert.labels import Recipe
from dens.data.convert.options import SHARD_SIZE, common_options, recipe_from, show_progress
from dens.data.convert.splits import (
    BLOCK,
    parse_fractions,
    split_by_block,
    split_by_index,
    split_by_system,
)
from dens.data.references import References, fit_references, load_references
from dens.data.sources.ase import (
    Frames,
    Index,
    Source,
    find_sources,
    index_source,
    named_units,
    read_frames,
)
from dens.data.units import parse_units

CHUNK = 256  # frames per task
WHOLE_CHUNK = 4096  # the same where a file is read as a whole for any of its frames


@dataclass(frozen=True)
class ConvertFrames:
    """Makes the records of some frames; ``group_key`` as in `convert`."""

    recipe: Recipe
    group_key: str | None = None

    def __call__(self, frames: Frames) -> Prepared:
        prepared = Prepared()
        for number, atoms in read_frames(frames):
            with naming_frame(frames.source.path, number):
                sid = frames.source.name
                if self.group_key:
                    sid = _group(atoms, self.group_key)
                self.recipe.add(prepared, atoms, sid=sid, fid=number)
        return prepared


@contextmanager
def naming_frame(path: str, number: int) -> Iterator[None]:
    """Name file and frame in errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}, frame {number}: {error}") from error


def _group(atoms: ase.Atoms, key: str) -> str:
    if key not in atoms.info:
        known = ", ".join(map(str, atoms.info)) or "nothing"
        raise ValueError(f"expected the key {key!r} in its info, which has {known}")
    return str(atoms.info[key])


@dataclass(frozen=True)
class Groups:
    """Reads the group of each frame."""

    key: str

    def __call__(self, frames: Frames) -> list[str]:
        groups = []
        for number, atoms in read_frames(frames):
            with naming_frame(frames.source.path, number):
                groups.append(_group(atoms, self.key))
        return groups


@dataclass(frozen=True)
class Energies:
    """Reads what a fit of references needs: (atomic numbers, energy in eV) of each frame."""

    recipe: Recipe

    def __call__(self, frames: Frames) -> list[tuple[np.ndarray, float]]:
        samples = []
        for number, atoms in read_frames(frames):
            with naming_frame(frames.source.path, number):
                labels = self.recipe.labels(atoms)
            if labels is not None:
                samples.append((atoms.numbers, labels.energy))
        return samples


@dataclass(frozen=True)
class Splitting:
    """Which frames go where: by system (``group_key`` None: by source), by block, by index files,
    or all of them into the output folder itself."""

    rule: str | None = None
    fractions: Mapping[str, float] | None = None
    index: Mapping[str, Path] | None = None
    group_key: str | None = None
    seed: int = 0
    block: int = BLOCK

    def assign(self, indices: Sequence[Index], mapped: Mapped) -> dict[str, np.ndarray]:
        """By split, the ascending numbers of its frames over all sources.

        Raises:
            ValueError: see `dens.data.convert.splits`.
        """
        counts = [index.count for index in indices]
        if self.index:
            return split_by_index(self.index, sum(counts))
        if self.rule == "by-block":
            return split_by_block(counts, self.fractions, self.seed, self.block)
        if self.rule == "by-system":
            names = np.repeat([index.source.name for index in indices], counts)
            groups = names if self.group_key is None else self._read_groups(indices, mapped)
            return split_by_system(groups, self.fractions, self.seed)
        return {"": np.arange(sum(counts))}

    def _read_groups(self, indices: Sequence[Index], mapped: Mapped) -> list[str]:
        everything = np.arange(sum(index.count for index in indices))
        parts = mapped(Groups(self.group_key), tasks(indices, everything))
        return [group for groups in parts for group in groups]

    def describe(self) -> dict:
        """The settings in plain values."""
        files = {name: str(path) for name, path in (self.index or {}).items()}
        return {
            "split": self.rule or ("by index files" if files else "none"),
            "fractions": self.fractions and dict(self.fractions),
            "index": files or None,
            "group_key": self.group_key,
            "seed": self.seed,
            "block": self.block if self.rule == "by-block" else None,
        }


def tasks(indices: Sequence[Index], numbers: np.ndarray) -> Iterator[Frames]:
    """The frames of these numbers over all sources, in portions of one source each."""
    ends = np.cumsum([index.count for index in indices])
    for index, end in zip(indices, ends, strict=True):
        low, high = np.searchsorted(numbers, [end - index.count, end])
        own = (numbers[low:high] - (end - index.count)).tolist()
        packed = index.source.path.endswith((".xz", ".gz", ".bz2"))
        whole = packed or index.source.kind in ("npz", "vasp", "ase")
        chunk = WHOLE_CHUNK if whole else CHUNK
        for start in range(0, len(own), chunk):
            yield index.frames(own[start : start + chunk])


def convert(
    sources: Sequence[str | Path],
    out: str | Path,
    recipe: Recipe,
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
        recipe: how structures become records.
        splitting: by default, all frames go to `out` itself; otherwise to a folder below, by split.
        fit: fit references to the split ``train`` (or to the first one) and subtract them.
        shard_size: frames per LMDB file, and the most that an interruption costs.
        workers: processes; the bytes written do not depend on it.
        progress: called with the frames done and in all.

    Returns:
        Counts by split: frames, records, and what `report` prints.

    Raises:
        ValueError: what cannot be read, is not labelled or makes no sense, with file and frame.
    """
    if Path(out).exists():  # before minutes of reading
        raise ValueError(f"{out} already exists: remove it or choose another output folder")
    splitting = splitting or Splitting()
    found = find_sources(sources)
    recipe = _settle_units(found, recipe)
    with mapper(workers) as mapped:
        return _convert(found, out, recipe, splitting, fit, shard_size, mapped, progress)


def _convert(
    found: Sequence[Source],
    out: str | Path,
    recipe: Recipe,
    splitting: Splitting,
    fit: bool,
    shard_size: int,
    mapped: Mapped,
    progress: Callable[[int, int], None],
) -> dict[str, Counter]:
    indices = list(mapped(index_source, found))
    splits = splitting.assign(indices, mapped)
    if fit:
        recipe = replace(recipe, references=_fit(indices, splits, recipe, mapped))
    pieces = [
        Piece(split, tuple(tasks(indices, numbers[start : start + shard_size])))
        for split, numbers in splits.items()
        for start in range(0, len(numbers), shard_size)
    ]
    total = sum(map(len, splits.values()))

    def finish(folder: Path, totals: dict[str, Counter]) -> None:
        check_boundaries(totals)
        info = {**recipe.describe(), **splitting.describe(), "splits": totals}
        info["sources"] = [{"sid": i.source.name, "frames": i.count} for i in indices]
        write_info(folder, "convert", info, recipe.references)

    return build(
        out,
        pieces,
        ConvertFrames(recipe, splitting.group_key),
        settings=json.dumps([versions(), recipe.describe(), splitting.group_key]),
        mapped=mapped,
        finish=finish,
        progress=lambda done: progress(done, total),
    )


def _fit(
    indices: Sequence[Index], splits: Mapping[str, np.ndarray], recipe: Recipe, mapped: Mapped
) -> References:
    """References fitted to the split ``train``, or to the first one."""
    chosen = "train" if "train" in splits else next(iter(splits))
    parts = mapped(Energies(recipe), tasks(indices, splits[chosen]))
    samples = (sample for part in parts for sample in part)
    return fit_references(samples, f"the fit to {chosen or 'all frames'}")


def _settle_units(found: Sequence[Source], recipe: Recipe) -> Recipe:
    """The recipe with the units that the files name, where none were given."""
    named = {}
    for source in found:
        name = named_units(source)
        if source.kind == "npz" and name is None and recipe.units is None:
            raise ValueError(f"{source.path}: an .npz does not tell its units: give --units")
        known = "eV-A" if source.kind == "vasp" else name
        if known and recipe.units and recipe.units.name != known:
            raise ValueError(
                f"{source.path}: its units are {known}, but --units says {recipe.units.name}"
            )
        named[name or "unnamed units"] = source.path
    if recipe.units or named.keys() == {"unnamed units"}:
        return recipe
    if len(named) > 1:
        mixed = ", ".join(f"{name} in {path}" for name, path in named.items())
        raise ValueError(f"expected sources in the same units, got {mixed}")
    return replace(recipe, units=parse_units(*named))


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
    recipe = recipe_from(
        options,
        units=parse_units(units) if units else None,
        references=load_references(references) if references and not fit else None,
    )
    fractions = parse_fractions(fractions) if split else None
    splitting = Splitting(split, fractions, files or None, group_key, seed, block)
    totals = convert(
        sources, out, recipe, splitting=splitting, fit=fit, progress=show_progress, **options
    )
    report(out, totals)
