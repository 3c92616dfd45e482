"""Make the data of the studies: ``python -m experiments.data KIND SOURCE OUT``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import ase.io
import click
import numpy as np
import yaml
from ase.calculators.singlepoint import SinglePointCalculator

_PATH = click.Path(path_type=Path)


@click.group()
def main() -> None:
    """Convert original data to LMDB folders, in the splits of the studies."""


@main.command()
@click.argument("source", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--train", "n_train", default=950, show_default=True, help="Training frames.")
def aspirin(source: Path, out: Path, n_train: int) -> None:
    """Split rMD17 aspirin: 50 of 1,200 shuffled frames to validate, then N_TRAIN; 1,800 to test.

    A smaller training set is part of each larger one; the validation set is the same.
    """
    from dens.data.convert.md17 import convert_md17

    files = [_only(source, f"rmd17_aspirin_{name}.xyz") for name in ("1200", "test_1800")]
    order = np.random.default_rng(0).permutation(1200)
    parts = {"val": order[:50], "train": order[50 : 50 + n_train], "test": np.arange(1200, 3000)}
    with tempfile.TemporaryDirectory() as temporary:
        frames = Path(temporary, "aspirin.xyz")
        frames.write_text("".join(file.read_text() for file in files))
        index = {name: Path(temporary, f"{name}.txt") for name in parts}
        for name, numbers in parts.items():
            np.savetxt(index[name], np.sort(numbers), fmt="%d")
        summary = convert_md17("aspirin", frames, out, units="eV-A", index_files=index)
    click.echo(summary.text())


@main.command()
@click.argument("source", type=_PATH)
@click.argument("out", type=_PATH)
@click.option(
    "--relative",
    is_flag=True,
    help="Energies less that of the last frame, in the place of OC20's linear references.",
)
def oc20(source: Path, out: Path, relative: bool) -> None:
    """Split 25 DFT relaxations: OUT/id has blocks of frames of 20 systems, OUT/ood 5 other systems.

    Every fifth system is out of domain. OC20's linear references are subtracted from energies. A
    block is 5 frames: forces of a relaxation change so fast that with blocks of 20 those of
    the nearest frame in another block are worse than zeros.
    """
    from dens.cli import data

    common = ["--max-force", "50"]
    if not relative:
        common += ["--references", str(_only(source, "oc20_linref.npz"))]
    split = ["--split", "by-block", "--fractions", "train=0.8,val=0.1,test=0.1", "--block", "5"]
    with tempfile.TemporaryDirectory() as temporary:
        unpack = _only(_only(source, "oc20_dft_relax_25.npz").parent, "unpack.py")
        subprocess.run([sys.executable, unpack, temporary], check=True, stdout=subprocess.DEVNULL)
        systems = sorted(map(str, Path(temporary).glob("*.traj")))
        if relative:
            for system in systems:
                _subtract_last(system)
        held_out = systems[::5]
        known = [system for system in systems if system not in held_out]
        for files, folder, more in ((held_out, "ood", []), (known, "id", split)):
            words = ["convert", *files, *more, *common, "--out", str(out / folder)]
            data.main(words, standalone_mode=False)


@main.command()
@click.argument("source", type=_PATH)
@click.argument("out", type=_PATH)
def molecules(source: Path, out: Path) -> None:
    """Make aselmdb folders: OUT/aspirin to train on, OUT/ethanol50 and OUT/ethanol200 to tune on.

    Of 1,200 frames of rMD17 aspirin 50 validate. Of 1,000 of CCSD(T) ethanol 50 or 200 train, the
    next 50 validate, and 750 test; the smaller training set is part of the larger one.
    """
    aspirin, ethanol = (np.random.default_rng(0).permutation(n) for n in (1200, 1000))
    parts = {
        "aspirin": {"val": aspirin[:50], "train": aspirin[50:]},
        **{
            f"ethanol{n}": {"train": ethanol[:n], "val": ethanol[200:250], "test": ethanol[250:]}
            for n in (50, 200)
        },
    }
    files = {"aspirin": "rmd17_aspirin_1200.xyz", "ethanol": "sgdml_ethanol_ccsd_t_1000.npz"}
    units = {"aspirin": "eV-A", "ethanol": "kcal/mol"}
    from dens.cli import data

    for name, splits in parts.items():
        molecule = name.rstrip("0123456789")
        words = ["convert", str(_only(source, files[molecule])), "--units", units[molecule]]
        with tempfile.TemporaryDirectory() as temporary:
            for split, numbers in splits.items():
                index = Path(temporary, f"{split}.txt")
                np.savetxt(index, np.sort(numbers), fmt="%d")
                words += ["--index", f"{split}={index}"]
            words += ["--format", "aselmdb", "--out", str(out / name)]
            data.main(words, standalone_mode=False)


@main.command()
@click.argument("config", type=_PATH)
@click.argument("out", type=_PATH)
def pretrained(config: Path, out: Path) -> None:
    """Train CONFIG with fairchem-core 2, and keep the best checkpoint as OUT/inference_ckpt.pt."""
    from dens.fairchem2.launch import launch
    from experiments.study import read_config

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "config.yaml")
        path.write_text(yaml.safe_dump(read_config(config), sort_keys=False))
        launch(["-c", str(path), f"job.run_dir={temporary}", "+job.timestamp_id=run"])
        out.mkdir(parents=True)
        best = Path(temporary, "run", "checkpoints", "best_inference_ckpt.pt")
        shutil.copy(best, out / "inference_ckpt.pt")


def _subtract_last(path: str) -> None:
    """Rewrite a trajectory with energies less that of its last frame."""
    frames = ase.io.read(path, ":")
    last = frames[-1].get_potential_energy()
    for frame in frames:
        energy, forces = frame.get_potential_energy(), frame.get_forces(apply_constraint=False)
        frame.calc = SinglePointCalculator(frame, energy=energy - last, forces=forces)
    ase.io.write(path, frames)


def _only(source: Path, name: str) -> Path:
    """Find the file of that name under `source`.

    Raises:
        ClickException: there is none, or more than one.
    """
    found = sorted(source.rglob(name))
    if len(found) != 1:
        raise click.ClickException(f"{source}: expected one {name} in it, got {len(found)}")
    return found[0]


if __name__ == "__main__":
    main()
