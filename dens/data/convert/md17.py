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

from dens.data.convert.splits import split_by_index
from dens.data.sources.md17 import Molecule, download, find_files, find_molecule, read_molecule
from dens.data.sources.npz import MoleculeFrames
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import atoms_to_data
from dens.data.units import UNITS
from dens.files import atomic_folder

SPLITS = ("train", "val", "test")
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
    mean square force component (eV/Å), and the number of frames by split."""

    path: Path
    molecule: Molecule
    mean: float
    stdev: float
    force_rms: float
    counts: dict[str, int]

    def text(self) -> str:
        """Return the summary in one line."""
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
    index["test"] = _draw_test(index["test"], n_test, seed, frames["test"].path)
    index = {name: numbers for name, numbers in index.items() if len(numbers)}
    summary = _summarize(Path(out), kind, frames["train"], index)
    with atomic_folder(out) as folder:
        for name, numbers in index.items():
            _write_split(folder / name, kind, frames[name], numbers, summary.mean, progress)
            np.savetxt(folder / f"index_{name}.txt", numbers, fmt="%d")
        _write_normalizers(folder, summary)
        sources = {f.path: _describe_source(f) for f in frames.values()}
        seeds = {} if index_files else {"seed": seed}
        info = {**_describe(summary, frames), **seeds, "sources": [*sources.values()]}
        info.update(origin or {})
        (folder / "dens_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return summary


def _read(source: Path, molecule: Molecule, units: str | None) -> dict[str, MoleculeFrames]:
    """Read the frames that each split is taken from; all are equal unless there is a test file."""
    path, test_path = find_files(source, molecule)
    main = test = read_molecule(path, molecule, units)
    if test_path is not None:
        test = read_molecule(test_path, molecule, units)
        if not np.array_equal(test.numbers, main.numbers):
            raise ValueError(f"{test_path}: expected the atoms in the order of {path.name}")
    return {"train": main, "val": main, "test": test}


def _split_by_seed(
    frames: dict[str, MoleculeFrames], n_train: int, n_val: int, seed: int
) -> dict[str, np.ndarray]:
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
    frames: dict[str, MoleculeFrames], files: Mapping[str, str | Path], n_val: int, seed: int
) -> dict[str, np.ndarray]:
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


def _draw_test(rest: np.ndarray, count: int | None, seed: int, path: Path) -> np.ndarray:
    """Draw `count` test frames from the rest; None takes all of them."""
    if count is None and len(rest) == 0:
        raise ValueError(
            f"{path}: no frame is left for the test split: lower --train or --val, or say --test 0"
        )
    if count is None:
        return rest
    if not 0 <= count <= len(rest):
        raise ValueError(f"{path}: --test must be in 0 .. {len(rest)}, got {count}")
    return np.sort(np.random.default_rng(seed).permutation(rest)[:count])


def _summarize(out: Path, molecule: Molecule, frames: MoleculeFrames, index: dict) -> Md17Summary:
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
@click.option("--seed", default=0, show_default=True, help="Seed of the random splits.")
@click.option("--train-index", type=_PATH, help="File of training frames, and of --val frames.")
@click.option("--val-index", type=_PATH, help="File of validation frames.")
@click.option("--test-index", type=_PATH, help="File of test frames.")
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
        if not source.exists():
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


def _show(split: str, done: int, total: int) -> None:
    click.echo(f"\r{split}: {done} of {total} frames", nl=done == total, err=True)
