"""Relax ten slabs of the demo data with fairchem's LBFGS and with ASE's BFGS, and compare.

python examples/relax_demo.py CHECKPOINT

The slabs are the first frames of ten relaxations that the model was not trained on. LBFGS runs
through ``fairchem --mode run-relaxations``, BFGS through ASE and ``dens.load_calculator``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from ase.io import read
from ase.optimize import BFGS
from torch_geometric.data import Data

import dens
from dens.data.store.lmdb import LmdbWriter
from dens.fairchem1.data.datasets import open_dataset

CONFIG = "examples/relax_demo.yml"
FMAX, STEPS = 0.05, 300  # eV/Å


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/demo/val_id"))
    parser.add_argument("--out", type=Path, default=Path("relaxations"))
    args = parser.parse_args()
    write_starts(args.data, args.out / "starts")
    command = [sys.executable, "main.py", "--mode", "run-relaxations", "--config", CONFIG, "--cpu"]
    command += ["--checkpoint", args.checkpoint, f"--dataset.relax.src={args.out / 'starts'}"]
    command += [f"--task.relax_opt.traj_dir={args.out}", f"--task.relaxation_fmax={FMAX}"]
    subprocess.run([*map(str, command), f"--task.relaxation_steps={STEPS}"], check=True)
    calculator = dens.load_calculator(args.checkpoint, cpu=True)
    print("slab         LBFGS (eV)  steps   BFGS (eV)  steps  difference")
    for path in sorted(args.out.glob("*.traj")):
        print(f"{path.stem:12}" + compare(read(path, ":"), calculator))


def write_starts(data: Path, out: Path) -> None:
    """Write the first frames of the first ten relaxations as a data set."""
    first: dict[int, Data] = {}
    for frame in open_dataset(data):
        if not frame.md and (frame.sid not in first or frame.fid < first[frame.sid].fid):
            first[frame.sid] = frame
    with LmdbWriter(out) as writer:
        for sid in sorted(first)[:10]:
            writer.write(first[sid])


def compare(frames, calculator) -> str:
    """Relax the first of ``frames`` with BFGS, and format its row of the table.

    fairchem writes every frame except the converged one: ``frames`` end one step before it.
    """
    atoms, relaxed = frames[0].copy(), frames[-1]
    atoms.calc = calculator
    bfgs = BFGS(atoms, logfile=None)
    bfgs.run(fmax=FMAX, steps=STEPS)
    energy, found = relaxed.get_potential_energy(), atoms.get_potential_energy()
    return f"{energy:11.3f} {len(frames):6} {found:11.3f} {bfgs.nsteps:6} {found - energy:11.3f}"


if __name__ == "__main__":
    main()
