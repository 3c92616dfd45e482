"""Measure how well checkpoints conserve energy: molecular dynamics at constant energy (NVE).

    python -m benchmarks.nve --model direct=A.pt --model gradient=B.pt --structure aspirin.xyz

Each model runs ASE's velocity Verlet from the same structure and velocities. Reported are, of the
total energy: the drift, the slope of a straight line through it; the spread around that line; and
the largest change from the start.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import json
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet

from benchmarks.measure import commit, hardware
from dens.fairchem1.checkpoints.calculator import load_calculator


def starting_structure(path: str, frame: int, temperature: float, seed: int) -> Atoms:
    """Read a structure and draw velocities at a temperature, in K; it does not move or turn."""
    atoms = ase.io.read(path, index=frame)
    atoms.calc = None
    unit = np.random.default_rng(seed).standard_normal((len(atoms), 3))
    atoms.set_momenta(unit * np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None])
    Stationary(atoms)
    if not atoms.pbc.any():
        ZeroRotation(atoms)
    return atoms


def total_energies(atoms: Atoms, checkpoint: str, steps: int, timestep: float) -> np.ndarray:
    """Run dynamics with a checkpoint: (steps + 1,), eV; ends early if atoms fly apart."""
    atoms = atoms.copy()
    atoms.calc = load_calculator(checkpoint, cpu=True)
    dynamics = VelocityVerlet(atoms, timestep=timestep * units.fs)
    energies = [atoms.get_total_energy()]
    for _ in range(steps):
        dynamics.run(1)
        energies.append(atoms.get_total_energy())
        if not np.isfinite(energies[-1]) or abs(energies[-1] - energies[0]) > 10 * len(atoms):
            break
    return np.array(energies)


def summary(energies: np.ndarray, n_atoms: int, timestep: float) -> dict[str, float]:
    """Summarise total energies, (steps + 1,), eV: in meV for each atom, and ps."""
    time = timestep / 1000 * np.arange(len(energies))
    per_atom = 1000 * (energies - energies[0]) / n_atoms
    slope, start = np.polyfit(time, per_atom, 1)
    return {
        "ps": round(float(time[-1]), 4),
        "drift_meV_atom_ps": float(slope),
        "spread_meV_atom": float((per_atom - start - slope * time).std()),
        "largest_meV_atom": float(abs(per_atom).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.nve", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="NAME=CHECKPOINT")
    add("--structure", required=True, help="a file that ASE reads")
    add("--frame", type=int, default=0, help="which structure of the file")
    add("--ps", type=float, default=2.0, help="length of the run")
    add("--timestep", type=float, default=0.5, help="fs")
    add("--temperature", type=float, default=300.0, help="K, of the first velocities")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    atoms = starting_structure(args.structure, args.frame, args.temperature, args.seed)
    steps, results = round(1000 * args.ps / args.timestep), {}
    for name, _, checkpoint in (model.partition("=") for model in args.model):
        energies = total_energies(atoms, checkpoint, steps, args.timestep)
        results[name] = summary(energies, len(atoms), args.timestep)
        print(name, *(f"{key} {value:.4g}" for key, value in results[name].items()), sep="  ")
    if args.out is not None:
        settings = {k: v for k, v in vars(args).items() if k not in ("model", "out", "structure")}
        content = {"settings": settings, "results": results, "commit": commit()}
        args.out.write_text(json.dumps(content | {"hardware": hardware("cpu")}, indent=1) + "\n")


if __name__ == "__main__":
    main()
