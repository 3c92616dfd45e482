"""``dens data md17``: a molecule of MD17, rMD17 or sGDML's CCSD(T) sets as LMDB folders.

Energies of -17,000 eV leave float32 nothing below 1 meV, and fairchem's loader casts to float32.
Stored is the energy minus the mean of the training set:

.. math:: y_k = E_k - \\frac{1}{n_{train}} \\sum_{j \\in train} E_j
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from ase import Atoms

from dens.data.convert.splits import split_by_index
from dens.data.sources.md17 import (
    Frames,
    Molecule,
    download,
    find_files,
    find_molecule,
    read_frames,
    sha256,
)
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import atoms_to_data
from dens.data.units import UNITS
from dens.files import atomic_folder

SPLITS = ("train", "val", "test")
_PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Md17Summary:
    """What was written: mean and standard deviation of the training energies (eV), root mean
    square force component (eV/Å), and the number of frames by split."""

    path: Path
    molecule: Molecule
    mean: float
    stdev: float
    force_rms: float
    counts: dict[str, int]

    def text(self) -> str:
        """The summary in one line."""
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return (
            f"{self.path}: {self.molecule.name}, {counts}; training energies "
            f"{self.mean:.4f} +- {self.stdev:.4f} eV, force components {self.force_rms:.4f} eV/Å"
        )


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
    progress: Callable[[str, int, int], None] | None = None,
) -> Md17Summary:
    """Write ``out/train``, ``out/val``, ``out/test`` and what a config needs beside them.

    That is ``normalizer.yml`` (to include) and ``normalizer_energy.npz``, ``normalizer_forces.npz``
    (to name in ``dataset.train.transforms.normalizer``): the training energies' mean, 0 after the
    shift, and standard deviation, which also scales the forces; ``index_*.txt``, the frame numbers
    of each split; ``dens_info.json``, where everything came from. `out` appears as a whole. The
    same arguments give the same bytes.

    Args:
        molecule: name or alias, see `find_molecule`.
        source: file or folder, see `find_files`.
        out: the folder to make; it must not exist.
        units: see `read_frames`.
        n_train, n_val: frames, drawn at random; of a set with a test file, from the other one.
        n_test: frames drawn at random from the rest (or the test file); None: all of them.
        seed: for everything that is drawn.
        index_files: by split, ``train`` (from which validation frames are drawn where there is no
            ``val``), ``val``, ``test``; see `dens.data.convert.splits.read_index`. They replace
            `n_train`.
        origin: further facts for ``dens_info.json``.
        progress: called with (split, frames done, frames in all).

    Raises:
        ValueError: anything wrong with the data or the splits, in one line.
    """
    kind = find_molecule(molecule)
    frames = _read(Path(source), kind, units)
    if index_files:
        index = _split_by_files(frames, index_files, n_val, seed)
    else:
        index = _split_by_seed(frames, n_train, n_val, seed)
    index["test"] = _some(index["test"], n_test, seed, frames["test"].path)
    index = {name: numbers for name, numbers in index.items() if len(numbers)}
    summary = _describe(Path(out), kind, frames["train"], index)
    with atomic_folder(out) as folder:
        for name, numbers in index.items():
            _write_split(folder / name, kind, frames[name], numbers, summary.mean, progress)
            np.savetxt(folder / f"index_{name}.txt", numbers, fmt="%d")
        _write_normalizers(folder, summary)
        info = _info(summary, frames, {} if index_files else {"seed": seed}, origin or {})
        (folder / "dens_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return summary


def _read(source: Path, molecule: Molecule, units: str | None) -> dict[str, Frames]:
    """By split, the frames it is taken from: the same ones, unless there is a test file."""
    path, test_path = find_files(source, molecule)
    main = test = read_frames(path, molecule, units)
    if test_path is not None:
        test = read_frames(test_path, molecule, units)
        if not np.array_equal(test.numbers, main.numbers):
            raise ValueError(f"{test_path}: expected the atoms in the order of {path.name}")
    return {"train": main, "val": main, "test": test}


def _split_by_seed(frames: dict[str, Frames], n_train: int, n_val: int, seed: int) -> dict:
    main, test = frames["train"], frames["test"]
    if n_train < 2 or n_val < 1 or n_train + n_val > len(main):
        raise ValueError(
            f"{main.path}: expected at least 2 training and 1 validation frames, and no more than "
            f"its {len(main)}, got --train {n_train} --val {n_val}"
        )
    order = np.random.default_rng(seed).permutation(len(main))
    parts = np.split(order, [n_train, n_train + n_val])
    index = {name: np.sort(part) for name, part in zip(SPLITS, parts, strict=True)}
    return index if test is main else {**index, "test": np.arange(len(test))}


def _split_by_files(
    frames: dict[str, Frames], files: Mapping[str, str | Path], n_val: int, seed: int
) -> dict:
    main = frames["train"]
    if frames["test"] is not main:
        raise ValueError(f"{main.path}: has a test file beside it, so index files do not fit it")
    if "train" not in files:
        raise ValueError(f"--{next(iter(files))}-index needs --train-index beside it")
    index = split_by_index(files, len(main))
    if "val" not in index:
        if not 1 <= n_val <= len(index["train"]) - 2:
            raise ValueError(
                f"{files['train']}: expected --val to be at least 1 and to leave at least 2 of "
                f"its {len(index['train'])} frames for training, got {n_val}"
            )
        order = np.random.default_rng(seed).permutation(index["train"])
        index["val"], index["train"] = np.sort(order[:n_val]), np.sort(order[n_val:])
    if "test" not in index:
        used = np.concatenate([index["train"], index["val"]])
        index["test"] = np.setdiff1d(np.arange(len(main)), used)
    return {name: index[name] for name in SPLITS}


def _some(rest: np.ndarray, count: int | None, seed: int, path: Path) -> np.ndarray:
    """`count` of the frames, drawn at random; all of them for None."""
    if count is None and len(rest) == 0:
        raise ValueError(
            f"{path}: no frame is left for the test split: lower --train or --val, or say --test 0"
        )
    if count is None:
        return rest
    if not 0 <= count <= len(rest):
        raise ValueError(f"{path}: --test must be in 0 .. {len(rest)}, got {count}")
    return np.sort(np.random.default_rng(seed).permutation(rest)[:count])


def _describe(out: Path, molecule: Molecule, frames: Frames, index: dict) -> Md17Summary:
    energy, forces = frames.energy[index["train"]], frames.forces[index["train"]]
    stdev = float(energy.std(ddof=1))
    if stdev < 1e-6:
        raise ValueError(f"{frames.path}: expected energies that differ, got {energy[0]} eV in all")
    counts = {name: len(numbers) for name, numbers in index.items()}
    rms = float(np.sqrt(np.square(forces).mean()))
    return Md17Summary(out, molecule, float(energy.mean()), stdev, rms, counts)


def _write_split(
    path: Path,
    molecule: Molecule,
    frames: Frames,
    index: np.ndarray,
    shift: float,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    with LmdbWriter(path) as writer:
        for done, number in enumerate(index.tolist(), start=1):
            data = atoms_to_data(
                Atoms(frames.numbers, frames.pos[number]),  # no cell, no pbc
                sid=molecule.name,
                fid=number,
                energy=frames.energy[number] - shift,
                forces=frames.forces[number],
            )
            writer.write(data)
            if progress is not None and (done % 1000 == 0 or done == len(index)):
                progress(path.name, done, len(index))


def _write_normalizers(folder: Path, summary: Md17Summary) -> None:
    stdev, count, name = np.float32(summary.stdev), summary.counts["train"], summary.molecule.name
    for target in ("energy", "forces"):
        np.savez(folder / f"normalizer_{target}.npz", mean=np.float32(0), rmsd=stdev)
    (folder / "normalizer.yml").write_text(
        f"""# Of the {count} frames of {name} in the folder train.
# Their mean energy, {summary.mean!r} eV, is already subtracted from the data,
# so the mean that is left is 0. Forces are divided by the energies' standard deviation.
dataset:
  train:
    transforms:
      normalizer:
        energy:
          mean: 0.0
          stdev: {summary.stdev!r} # eV
        forces:
          mean: 0.0
          stdev: {summary.stdev!r} # eV/Å
""",
        encoding="utf-8",
    )


def _info(summary: Md17Summary, frames: dict[str, Frames], draw: dict, origin: dict) -> dict:
    files = {f.path: f for f in frames.values()}
    return {
        "molecule": summary.molecule.name,
        "formula": summary.molecule.formula,
        "units": {"y": "eV, minus energy_mean", "force": "eV/Å", "pos": "Å"},
        "energy_mean": summary.mean,
        "energy_stdev": summary.stdev,
        "force_rms": summary.force_rms,
        "splits": {
            name: {
                "frames": count,
                "source": frames[name].path.name,
                "index": f"index_{name}.txt",
            }
            for name, count in summary.counts.items()
        },
        **draw,
        "sources": [
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
                "frames": len(f),
                "units": f.units.name,
            }
            for path, f in files.items()
        ],
        **origin,
    }


@click.command("md17")
@click.argument("molecule")
@click.option("--out", required=True, type=_PATH, help="Folder to make.")
@click.option("--source", type=_PATH, help=".npz (MD17, rMD17), extended XYZ, or their folder.")
@click.option("--download", "fetch", is_flag=True, help="Fetch the original MD17 set to --source.")
@click.option("--sha256", "checksum", help="Refuse a source file with another checksum.")
@click.option("--units", help=f"One of {', '.join(UNITS)}; for .npz: kcal/mol, as published.")
@click.option("--train", "n_train", default=950, show_default=True, help="Training frames.")
@click.option("--val", "n_val", default=50, show_default=True, help="Validation frames.")
@click.option("--test", "n_test", type=int, help="Test frames, 0 for none.  [default: the rest]")
@click.option("--seed", default=0, show_default=True, help="Decides which frames go where.")
@click.option("--train-index", type=_PATH, help="Frames to train on and, by --val, to validate.")
@click.option("--val-index", type=_PATH, help="Frames to validate on.")
@click.option("--test-index", type=_PATH, help="Frames to test on.")
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
        origin = {"url": fetch_once(kind, source)}
    if source is None:
        raise ValueError("give --source FILE, or --download for the original MD17 set")
    if checksum is not None:
        _check_sum(source, kind, checksum)
    files = {name: options.pop(f"{name}_index") for name in SPLITS}
    summary = convert_md17(
        molecule,
        source,
        out,
        index_files={name: path for name, path in files.items() if path is not None},
        origin=origin,
        progress=_show,
        **options,
    )
    click.echo(summary.text())


def fetch_once(molecule: Molecule, path: Path) -> str:
    """Download unless the file is there already; returns the URL."""
    if not path.exists():
        click.echo(f"downloading {molecule.url} to {path}", err=True)
        download(molecule, path)
    return molecule.url


def _check_sum(source: Path, molecule: Molecule, expected: str) -> None:
    path, _ = find_files(source, molecule)
    found = sha256(path)
    if found != expected.strip().lower():
        raise ValueError(f"{path}: expected SHA-256 {expected}, got {found}")


def _show(split: str, done: int, total: int) -> None:
    click.echo(f"\r{split}: {done} of {total} frames", nl=done == total, err=True)
