"""Relax molecules with GFN2-xTB: numbers and positions as JSON on standard input, minima back.

A process of its own, without PyTorch: both bring a libgomp under the same name, and tblite's fails
to load where PyTorch's older one is there already.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from ase import Atoms
from ase.optimize import BFGS

FMAX, MAX_STEPS = 0.02, 200  # eV/Å; of BFGS


def relax(numbers: list[int], pos: list[list[float]]) -> dict[str, Any]:
    """Relax a molecule; return positions, steps, whether converged, process seconds, an error."""
    from tblite.ase import TBLite

    begin = time.process_time()
    atoms = Atoms(numbers, pos)
    found = {"steps": None, "converged": False, "error": None}
    try:
        atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
        with BFGS(atoms, logfile=None) as run:
            found["converged"] = bool(run.run(fmax=FMAX, steps=MAX_STEPS))
            found["steps"] = run.nsteps
    except Exception as error:  # tblite's and ASE's, such as for wave functions
        found["error"] = " ".join(str(error).split())[:100] or type(error).__name__
    seconds = time.process_time() - begin
    return {**found, "pos": atoms.positions.tolist(), "seconds": seconds}


def main() -> None:
    """Relax what is on standard input."""
    try:
        import tblite.ase  # noqa: F401
    except ImportError as error:
        sys.exit(f"{error}: pip install 'fairchem-dens[baselines]'")
    print(json.dumps([relax(*molecule) for molecule in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
