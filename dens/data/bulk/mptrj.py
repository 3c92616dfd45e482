"""``dens data mptrj``: convert the trajectories of the Materials Project, with stress, to LMDB.

MPtrj (Deng et al., doi:10.1038/s42256-023-00716-3; figshare 23713842) is one JSON file,
``{mp-id: {frame-id: {...}}}``. A frame has ``structure`` (of pymatgen), energies in eV, ``force``
in eV/Å, and ``stress`` in kbar with VASP's sign, the opposite of ASE's. The file is read as a
stream, one material at a time.

The reader was tested on small files of this layout, not on the published one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from dens.data.bulk.stress_labels import parts_of
from dens.data.convert.build import write_info
from dens.data.convert.command_line import DataCommand, common_options, take_rules
from dens.data.convert.command_line import warn_of_gradients as warn
from dens.data.convert.labels import LabelRules
from dens.data.skipped import BadFrame, count_bad, describe_skipped
from dens.data.store.by_format import writer_of
from dens.data.store.records import add_stress
from dens.files import atomic_folder

ENERGIES = {name: f"{name}_total_energy" for name in ("corrected", "uncorrected")}
KBAR = -0.1 * units.GPa  # eV/Å^3 per kbar of VASP, whose stress has the opposite sign
CHUNK = 1 << 24  # bytes read at once


class HashedFile:
    """File that is hashed as it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self.md5 = hashlib.md5(usedforsecurity=False)
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Read bytes, as of a file."""
        data = self._file.read(size)
        self.md5.update(data)
        return data

    def finish(self) -> str:
        """Read what is left; return the MD5 of the whole file."""
        while self.read(CHUNK):
            pass
        return self.md5.hexdigest()


def convert_mptrj(
    source: Path,
    out: Path,
    rules: LabelRules,
    *,
    val: float = 0.05,
    seed: int = 0,
    energy: str = "corrected",
    md5: str | None = None,
    on_bad: str = "error",
    store: str = "lmdb",
    shard_size: int = 100_000,
) -> Iterator[str]:
    """Write ``out/train`` and ``out/val``, whose materials differ; yield the lines of the report.

    Args:
        source: the JSON file.
        out: the folder to make; it must not exist.
        rules: rules for labels, such as a force limit.
        val: share of the materials that validate, chosen by a hash of the seed and their id.
        energy: ``corrected``, by the rules MP2020 that make GGA and GGA+U compatible, or
            ``uncorrected``.
        md5: of the file, to compare with; nothing is written if it differs.
        on_bad: ``error``, or ``skip``: leave out bad frames, and say which.
        store, shard_size: see `dens.data.store.lmdb.LmdbWriter`.

    Raises:
        ValueError: a file of another form or with another MD5, a bad frame, a split without frames.
    """
    counts = {"train": Counter(), "val": Counter()}
    bad: list[BadFrame] = []
    with atomic_folder(out) as folder, ExitStack() as stack, source.open("rb") as opened:
        file = HashedFile(opened)
        writer = writer_of(store)
        writers = {
            name: stack.enter_context(writer(folder / name, shard_size=shard_size))
            for name in counts
        }
        for mp_id, frames in read_materials(source, file):
            name = "val" if is_held_out(mp_id, val, seed) else "train"
            counts[name]["materials"] += 1
            for fid, (frame_id, frame) in enumerate(frames.items()):
                try:
                    data = make_record(frame, rules, counts[name], mp_id, fid, energy)
                except ValueError as error:
                    if on_bad == "error":
                        raise ValueError(f"{source}, {frame_id}: {error}") from error
                    bad.append(BadFrame(f"{source}, {frame_id}", str(error)))
                    continue
                if data is not None:
                    counts[name]["records"] += 1
                    writers[name].write(data, **rules.make_metadata(data))
        _compare(source, found := file.finish(), md5)
        for name in counts:
            if not counts[name]["records"]:
                raise ValueError(f"{source}: no structure for {name} (--val {val:g})")
        stack.close()
        skipped = list(count_bad(bad).values())
        info = {**rules.describe(), **{name: dict(c) for name, c in counts.items()}}
        info |= {"energy": ENERGIES[energy], "md5": found, "val": val, "seed": seed}
        write_info(folder, "mptrj", {**info, "skipped": skipped}, None)
    yield from _report(out, counts, skipped, energy)
    yield f"md5 of {source.name}: {found}"


def read_materials(source: Path, file: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the materials of the file one by one: id, and frames by their id.

    Raises:
        ValueError: no JSON of this form, cut off, or ijson is missing.
    """
    try:
        import ijson
    except ImportError:
        raise ValueError(
            "dens data mptrj needs the package ijson: pip install 'fairchem-dens[mptrj]'"
        ) from None
    try:
        for mp_id, frames in ijson.kvitems(file, "", use_float=True):
            if not isinstance(frames, dict) or not frames:
                raise ValueError(f"{source}, {mp_id}: expected frames by their id")
            yield mp_id, frames
    except ijson.JSONError as error:
        raise ValueError(f"{source}: not the JSON of MPtrj, or cut off: {error}") from error


def is_held_out(mp_id: str, share: float, seed: int) -> bool:
    """Tell whether a material validates: a function of the seed and its id alone."""
    digest = hashlib.sha256(f"{seed}/{mp_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def make_record(
    frame: Mapping[str, Any], rules: LabelRules, counts: Counter, sid: str, fid: int, energy: str
):
    """Make the record of a frame; None if a force exceeds the limit of the rules.

    Raises:
        ValueError: a label or the structure is missing or of another form.
    """
    try:
        atoms = as_atoms(frame["structure"])
        value, forces = float(frame[ENERGIES[energy]]), np.array(frame["force"], dtype=float)
        stress = np.array(frame["stress"], dtype=float).reshape(3, 3) * KBAR
    except KeyError as error:
        raise ValueError(f"expected {error.args[0]!r}, got {', '.join(frame)}") from error
    except TypeError as error:
        raise ValueError(f"a label is missing: {error}") from error
    atoms.calc = SinglePointCalculator(atoms, energy=value, forces=forces)
    data = rules.make_record(atoms, counts, sid=sid, fid=fid)
    if data is not None:
        add_stress(data, stress)
        counts["tension"] += parts_of(stress)[0] > 0
    return data


def as_atoms(structure: Mapping[str, Any]) -> Atoms:
    """Make an ASE structure of pymatgen's dictionary.

    Raises:
        ValueError: a site that is not one whole atom.
    """
    symbols, positions = [], []
    for site in structure["sites"]:
        kinds = site["species"]
        if len(kinds) != 1 or kinds[0]["occu"] != 1:
            raise ValueError(f"expected one whole atom on each site, got {kinds}")
        symbols.append(kinds[0]["element"])
        positions.append(site["xyz"])
    return Atoms(symbols, positions, cell=structure["lattice"]["matrix"], pbc=True)


def _compare(source: Path, found: str, md5: str | None) -> None:
    if md5 is not None and md5.lower() != found:
        raise ValueError(f"{source}: expected the MD5 {md5} (--md5), got {found}")


def _report(out: Path, counts: dict[str, Counter], skipped: list, energy: str) -> Iterator[str]:
    for name, found in counts.items():
        dropped = f", {found['dropped']} dropped" if found["dropped"] else ""
        yield (
            f"{out / name}: {found['records']} structures of {found['materials']} materials"
            f"{dropped}"
        )
    total = sum(counts.values(), Counter())
    yield (
        f"{energy} energies; stress, in kbar with VASP's sign, is kept in eV/Å^3, positive where "
        f"the cell would contract, as in {total['tension']} of {total['records']}"
    )
    yield from describe_skipped(skipped, "frames")


@click.command("mptrj", cls=DataCommand)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--val",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the materials that validate.",
)
@click.option("--seed", default=0, show_default=True, help="Of the random split.")
@click.option(
    "--energy",
    default="corrected",
    show_default=True,
    type=click.Choice(list(ENERGIES)),
    help="After MP2020's corrections, which make GGA and GGA+U compatible, or before.",
)
@click.option("--md5", help="Of FILE; nothing is written if it is another file.")
@common_options
def mptrj_command(file, out, workers, **options) -> None:
    """Convert MPtrj's FILE to LMDB.

    FILE is MPtrj_2022.9_full.json. The folder OUT gets train and val, split by material.
    """
    if workers != 1:
        raise click.UsageError("--workers must be 1: the file is one stream")
    rules = take_rules(options)
    for line in convert_mptrj(file, out, rules, **options):
        click.echo(line)
    warn(out, ("train", "val"))
