"""Relax cells of metals with a model of the bulk demo, compared with the lattice constants of EMT.

python examples/relax_cells.py CHECKPOINT
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

import dens

METALS = ("Al", "Ni", "Cu", "Pd", "Pt", "Au")  # of the demo's data
STRAIN, FMAX, STEPS = 1.01, 0.01, 60  # the start is 1 % too large; eV/Å


def lattice_constant(metal: str, calculator) -> float:
    """Relax a cubic cell of four atoms with its stress: the lattice constant in Å."""
    atoms = bulk(metal, "fcc", cubic=True)
    atoms.set_cell(STRAIN * atoms.cell, scale_atoms=True)
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=FMAX, steps=STEPS)
    return atoms.get_volume() ** (1 / 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    model = dens.load_calculator(args.checkpoint, cpu=True)
    print("| metal | EMT, Å | model, Å | difference |\n|---|---|---|---|")
    for metal in METALS:
        emt, found = lattice_constant(metal, EMT()), lattice_constant(metal, model)
        print(f"| {metal} | {emt:.3f} | {found:.3f} | {found / emt - 1:+.1%} |")


if __name__ == "__main__":
    main()
