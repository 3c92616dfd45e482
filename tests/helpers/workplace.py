"""Folder as a reader of the documentation has it, in which commands run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import ase.io
import numpy as np
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.io import Trajectory

from dens.data.bulk.bulk_demo import make_bulk_demo
from dens.data.demo import make_demo_data
from dens.data.equilibria.slabs import make_relaxed_demo
from dens.data.store.records import data_to_atoms
from helpers.calculations import write_calculations
from helpers.command_runner import Result, run_command
from helpers.command_table import TABLE, TRAIN
from helpers.documents import apply_diff, code_blocks
from helpers.equilibria import write_equilibria
from helpers.labelled import slabs, write_oc20
from helpers.paths import CONFIGS, DOCS, README, ROOT
from helpers.stressed import some_frames, write_mptrj
from helpers.written import read

# what stands for the words in capitals
WORDS = {"CONFIG": "configs/oc20/eqv2_dens_demo.yml", "STUDY": "demo"}


class Workplace:
    """A folder as the reader has it, with little data; runs each command once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: dict[str, Result] = {}
        for name in ("configs", "examples", "main.py", "benchmarks", "experiments", "tests"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "docs").mkdir()
        shutil.copy(ROOT / "docs/results.md", folder / "docs")
        shutil.copytree(ROOT / "docs/results/relaxation", folder / "docs/results/relaxation")
        shutil.copytree(ROOT / "docs/figures", folder / "docs/figures")
        make_demo_data(folder / "data/demo", train_frames=80, val_frames=10)
        (folder / "data/demo2").mkdir()
        make_bulk_demo(folder / "data/demo_bulk", train_frames=20, val_frames=10)
        write_mptrj(folder / "MPtrj_2022.9_full.json", some_frames(3, 2))
        systems = {"train": 8, "val_id": 2, "val_ood": 1}
        make_relaxed_demo(folder / "data/demo_relaxed", systems=systems)
        self._make_sources()
        _, diff = code_blocks(README.read_text(encoding="utf-8"), "diff")
        stock = (CONFIGS / "oc20/eqv2_demo.yml").read_text(encoding="utf-8")
        (own,) = code_blocks((DOCS / "data.md").read_text(encoding="utf-8"), "yaml")
        (folder / "own.yml").write_text(own, encoding="utf-8")
        (folder / "my_config.yml").write_text(apply_diff(diff, stock), encoding="utf-8")

    def _make_sources(self) -> None:
        (self.folder / "trajectories").mkdir()
        for i, metal in enumerate(["Cu", "Ni", "Pd", "Pt", "Au"] * 2):
            slab = fcc111(metal, size=(2, 2, 2), vacuum=6.0, periodic=True)
            with Trajectory(self.folder / f"trajectories/{i}.traj", "w") as trajectory:
                for frame in range(3):
                    slab.rattle(0.1, seed=10 * i + frame)
                    slab.calc = EMT()
                    slab.get_forces()
                    trajectory.write(slab)
        write_calculations(self.folder / "calculations")
        shutil.copytree(self.folder / "trajectories", self.folder / "relaxations")
        write_equilibria(self.folder)
        slab = data_to_atoms(read(self.folder / "data/demo/val_id")[0])
        ase.io.write(self.folder / "slab.traj", slab)
        for name in ("s2ef_train_all", "s2ef_md", "s2ef_train_2M"):
            lines = [f"random{len(name)},frame{10 * i},-30.25" for i in range(3)]
            write_oc20(self.folder / name, 0, slabs(3), lines)
        (self.folder / "data/md17").mkdir()
        for path, z, n in (
            ("sgdml_ethanol.npz", [6] * 2 + [1] * 6 + [8], 1000),
            ("data/md17/md17_aspirin.npz", [6] * 9 + [1] * 8 + [8] * 4, 12),
        ):
            rng = np.random.default_rng(0)
            pos, energy = 3 * rng.normal(size=(n, len(z), 3)), rng.normal(size=n)
            np.savez(self.folder / path, R=pos, E=energy, F=rng.normal(size=pos.shape), z=z)
        fake = self.folder / "bin/wget"
        fake.parent.mkdir()
        fake.write_text("#!/bin/sh\necho wget $*\n")
        fake.chmod(0o755)

    def run(self, command: str) -> Result:
        """Run a command of the table, after the commands that it needs."""
        if command in self._done:
            return self._done[command]
        how = TABLE[command]
        for other in how.needs:
            self.run(other)
        words = [WORDS.get(word, word) for word in f"{command} {how.more}".split(" ")]
        path = f"PATH={self.folder / 'bin'}:/usr/bin:/bin"
        result = run_command(f"{path} {' '.join(words)}", self.folder)
        if command == TRAIN:
            written = self.folder.glob("checkpoints/*/checkpoint.pt")
            newest = max(written, key=lambda path: path.stat().st_mtime)
            shutil.copy(newest, self.folder / "checkpoint.pt")
        self._done[command] = result
        return result


def check_command(workplace: Workplace, command: str) -> None:
    """Run a command of the table, and compare with what is said there."""
    how = TABLE[command]
    status, output = workplace.run(command)
    assert status == how.status, output
    assert how.says in output
    assert not how.makes or list(workplace.folder.glob(how.makes)), output
    if "--help" in how.more:
        assert all(option in output for option in re.findall(r"--[\w-]+", command))
