"""``dens data md17``: convert a molecule of MD17, rMD17 or sGDML's CCSD(T) sets to LMDB folders.

At energies of -17,000 eV, float32 resolves nothing below 1 meV, and fairchem's loader casts to
float32. So the mean energy of the training set is subtracted before storing:

.. math:: y_k = E_k - \\frac{1}{n_{train}} \\sum_{j \\in train} E_j
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from dens.data.convert.command_line import DataCommand, on_bad_option, warn_of_gradients
from dens.data.convert.splits import (
    SPLITS,
    draw_test,
    split_molecule_by_files,
    split_molecule_by_seed,
)
from dens.data.skipped import BadFrame, count_bad, describe_skipped
from dens.data.sources.md17 import Molecule, download, find_files, find_molecule, read_molecule
from dens.data.sources.npz import MoleculeFrames
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import atoms_to_data
from dens.data.units import UNITS
from dens.files import atomic_folder

_PATH = click.Path(path_type=Path)
_NORMALIZER = """\
# Of the {0.counts[train]} frames of {0.molecule.name} in the folder train.
# Their mean energy, {0.mean!r} eV, is already subtracted from the data,
# so the mean that is left is 0. Forces are divided by the energies' standard deviation.
dataset:
  train:
    transforms:
      normalizer:
        energy:
          mean: 0.0
          stdev: {0.stdev!r} # eV
        forces:
          mean: 0.0
          stdev: {0.stdev!r} # eV/Å
"""


@dataclass(frozen=True)
class Md17Summary:
    """Summary of the data written: mean and standard deviation of the training energies (eV), root
    mean square force component (eV/Å), frames by split, bad frames that are left out, by reason,
    and the number of frames in no split."""

    path: Path
    molecule: Molecule
    mean: float
    stdev: float
    force_rms: float
    counts: dict[str, int]
    skipped: tuple[dict, ...] = ()
    unused: int = 0

    def text(self) -> str:
        """Return the summary in one line, and one for each kind of frames that are left out."""
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        lines = [
            f"{self.path}: {self.molecule.name}, {counts}; training energies "
            f"{self.mean:.4f} +- {self.stdev:.4f} eV, force components {self.force_rms:.4f} eV/Å",
            *describe_skipped(self.skipped, "frames"),
        ]
        if self.unused:
            lines.append(f"{self.unused} frames are in no split: left out")
        return "\n".join(lines)


def convert_md17(
    molecule: str,
    source: str | Path,
    out: str | Path,
    *,
    units: str | None = None,
    n_train: int = 950,
    n_val: int = 50,
    n_test: int | None = None,
    seed: int = 0,
    index_files: Mapping[str, str | Path] | None = None,
    origin: Mapping[str, str] | None = None,
    on_bad: str = "error",
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> Md17Summary:
    """Write ``out/train``, ``out/val``, ``out/test``, and the files that a config needs.

    These are ``normalizer.yml`` (to include) and ``normalizer_energy.npz``,
    ``normalizer_forces.npz`` (for ``dataset.train.transforms.normalizer``): the training energies'
    mean, 0 after the shift, and standard deviation, which also scales the forces; ``index_*.txt``,
    the frame numbers of each split; ``dens_info.json``, the origin of everything. `out` appears
    once it is complete. Equal arguments give equal bytes.

    Args:
        molecule: name or alias, see `find_molecule`.
        source: file or folder, see `find_files`.
        out: the folder to make; it must not exist.
        units: see `read_molecule`.
        n_train, n_val: frames, drawn at random from the file with all frames, or the train file.
        n_test: frames drawn at random from the rest (or the test file); None: all of them.
        seed: for all draws.
        index_files: by split, ``train`` (from which validation frames are drawn if there is no
            ``val``), ``val``, ``test``; see `dens.data.convert.splits.read_index`. They replace
            `n_train`.
        origin: further facts for ``dens_info.json``.
        on_bad: ``error``, or ``skip``: leave bad frames out of the splits they are drawn for.
        progress: called with (split, frames done, frames in all).

    Raises:
        ValueError: anything wrong with the data or the splits, in one line.
    """
    kind = find_molecule(molecule)
    frames, bad = _read(Path(source), kind, units, on_bad)
    if index_files:
        index = split_molecule_by_files(frames, index_files, n_val, seed)
    else:
        index = split_molecule_by_seed(frames, n_train, n_val, seed)
    index["test"] = draw_test(index["test"], n_test, seed, frames["test"].path)
    index = {name: numbers for name, numbers in index.items() if len(numbers)}
    index, skipped = _leave_out(index, frames, bad)
    summary = _summarize(Path(out), kind, frames, index, skipped)
    with atomic_folder(out) as folder:
        for name, numbers in index.items():
            _write_split(folder / name, kind, frames[name], numbers, summary.mean, progress)
            np.savetxt(folder / f"index_{name}.txt", numbers, fmt="%d")
        _write_normalizers(folder, summary)
        sources = {f.path: _describe_source(f) for f in frames.values()}
        seeds = {} if index_files else {"seed": seed}
        info = {**_describe(summary, frames), **seeds, "sources": [*sources.values()]}
        if summary.skipped:
            info["skipped"] = summary.skipped
        info.update(origin or {})
        (folder / "dens_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return summary


def _read(
    source: Path, molecule: Molecule, units: str | None, on_bad: str
) -> tuple[dict[str, MoleculeFrames], dict[Path, dict[int, BadFrame]]]:
    """Read the frames that each split is taken from; all are equal unless there is a test file.
    And the bad frames of each file."""
    path, test_path = find_files(source, molecule)
    main, bad_of_main = read_molecule(path, molecule, units, on_bad)
    test, bad = main, {path: bad_of_main}
    if test_path is not None:
        test, bad[test_path] = read_molecule(test_path, molecule, units, on_bad)
        if not np.array_equal(test.numbers, main.numbers):
            raise ValueError(f"{test_path}: expected the atoms in the order of {path.name}")
    return {"train": main, "val": main, "test": test}, bad


def _leave_out(
    index: dict[str, np.ndarray],
    frames: Mapping[str, MoleculeFrames],
    bad: Mapping[Path, Mapping[int, BadFrame]],
) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Take the bad frames out of the splits; return the splits, and what is left out by reason.

    Raises:
        ValueError: a split with too few good frames.
    """
    left_out, kept = [], {}
    for name, numbers in index.items():
        path, own = frames[name].path, bad[frames[name].path]
        left_out += [own[number] for number in numbers.tolist() if number in own]
        kept[name] = np.array([n for n in numbers.tolist() if n not in own], dtype=int)
        if len(kept[name]) < (2 if name == "train" else 1):
            raise ValueError(f"{path}: too few of the {len(numbers)} frames of {name} are good")
    return kept, list(count_bad(left_out).values())


def _summarize(
    out: Path, molecule: Molecule, frames: Mapping[str, MoleculeFrames], index: dict, skipped: list
) -> Md17Summary:
    main = frames["train"]
    energy, forces = main.energy[index["train"]], main.forces[index["train"]]
    stdev = float(energy.std(ddof=1))
    if stdev < 1e-6:
        raise ValueError(f"{main.path}: expected energies that differ, got {energy[0]} eV in all")
    counts = {name: len(numbers) for name, numbers in index.items()}
    rms = float(np.sqrt(np.square(forces).mean()))
    total = sum({f.path: len(f) for f in frames.values()}.values())
    unused = total - sum(counts.values()) - sum(entry["count"] for entry in skipped)
    mean = float(energy.mean())
    return Md17Summary(out, molecule, mean, stdev, rms, counts, tuple(skipped), unused)


def _write_split(
    path: Path,
    molecule: Molecule,
    frames: MoleculeFrames,
    index: np.ndarray,
    shift: float,
    progress: Callable[[str, int, int], None],
) -> None:
    with LmdbWriter(path) as writer:
        for done, number in enumerate(index.tolist(), start=1):
            labels = {"energy": frames.energy[number] - shift, "forces": frames.forces[number]}
            writer.write(atoms_to_data(frames[number], sid=molecule.name, fid=number, **labels))
            if done % 1000 == 0 or done == len(index):
                progress(path.name, done, len(index))


def _write_normalizers(folder: Path, summary: Md17Summary) -> None:
    mean, stdev = np.float32(0), np.float32(summary.stdev)
    for target in ("energy", "forces"):
        np.savez(folder / f"normalizer_{target}.npz", mean=mean, rmsd=stdev)
    text = _NORMALIZER.format(summary)
    (folder / "normalizer.yml").write_text(text, encoding="utf-8")


def _describe(summary: Md17Summary, frames: dict[str, MoleculeFrames]) -> dict:
    return {
        "molecule": summary.molecule.name,
        "formula": summary.molecule.formula,
        "units": {"y": "eV, minus energy_mean", "force": "eV/Å", "pos": "Å"},
        "energy_mean": summary.mean,
        "energy_stdev": summary.stdev,
        "force_rms": summary.force_rms,
        "splits": {
            name: {"frames": n, "source": frames[name].path.name, "index": f"index_{name}.txt"}
            for name, n in summary.counts.items()
        },
    }


def _describe_source(frames: MoleculeFrames) -> dict:
    path = frames.path
    size = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
    return {**size, "frames": len(frames), "units": frames.units}


def sha256(path: Path) -> str:
    """Compute the SHA-256 checksum of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@click.command("md17", cls=DataCommand)
@click.argument("molecule")
@click.option("--out", required=True, type=_PATH, help="Folder to make.")
@click.option("--source", type=_PATH, help=".npz (MD17, rMD17), extended XYZ, or their folder.")
@click.option("--download", "fetch", is_flag=True, help="Fetch the original MD17 set to --source.")
@click.option("--sha256", "checksum", help="Refuse a source file with another checksum.")
@click.option("--units", help=f"One of {', '.join(UNITS)}; for .npz: kcal/mol, as published.")
@click.option("--train", "n_train", default=950, show_default=True, help="Training frames.")
@click.option("--val", "n_val", default=50, show_default=True, help="Validation frames.")
@click.option("--test", "n_test", type=int, help="Test frames, 0 for none.  [default: the rest]")
@click.option("--seed", default=0, show_default=True, help="Seed of the random splits.")
@click.option("--train-index", type=_PATH, help="File of training frames, and of --val frames.")
@click.option("--val-index", type=_PATH, help="File of validation frames.")
@click.option("--test-index", type=_PATH, help="File of test frames.")
@on_bad_option
def md17_command(molecule, out, source, fetch, checksum, **options) -> None:
    """Convert a MOLECULE of MD17, rMD17 or sGDML's CCSD(T) sets to LMDB.

    Original MD17:  dens data md17 aspirin --download --out data/md17/aspirin

    Revised MD17:  dens data md17 aspirin --source rmd17 --out data/md17/aspirin
    --train-index rmd17/splits/index_train_01.csv --test-index rmd17/splits/index_test_01.csv
    """
    kind = find_molecule(molecule)
    origin = {}
    if fetch:
        source = source or out.parent / f"{kind.file}.npz"
        origin = {"url": kind.url}
        if source.exists():
            click.echo(f"{source} is there: it is not downloaded again", err=True)
        else:
            click.echo(f"downloading {kind.url} to {source}", err=True)
            download(kind, source)
    if source is None:
        raise ValueError("give --source FILE, or --download for the original MD17 set")
    if checksum is not None:
        path, _ = find_files(source, kind)
        if sha256(path) != checksum.strip().lower():
            raise ValueError(f"{path}: expected SHA-256 {checksum}, got {sha256(path)}")
    files = {name: options.pop(f"{name}_index") for name in SPLITS}
    index_files = {name: path for name, path in files.items() if path is not None}
    summary = convert_md17(
        molecule, source, out, index_files=index_files, origin=origin, progress=_show, **options
    )
    click.echo(summary.text())
    warn_of_gradients(out, summary.counts)


def _show(split: str, done: int, total: int) -> None:
    click.echo(f"\r{split}: {done} of {total} frames", nl=done == total, err=True)
