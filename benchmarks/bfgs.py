"""BFGS on the forces of a model or of EMT, of many structures step by step, for benchmarks."""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import BFGS
from fairchem.core.datasets.lmdb_dataset import data_list_collater

from benchmarks.measure import clock
from dens.fairchem1.checkpoints.calculator import load_calculator
from dens.graphs.model_input import check_atoms

FMAX = 0.05  # eV/Å
STEPS = 100
ForcesOf = Callable[[list[Atoms]], list[np.ndarray | None]]


class End(NamedTuple):
    """Where a relaxation ended, and what it took."""

    pos: np.ndarray  # (n_atoms, 3) | Å
    calls: int  # of the network, or of EMT
    converged: bool
    seconds: float


def optimise(forces_of: ForcesOf, starts: list[Atoms]) -> list[End]:
    """Run BFGS on all structures step by step, so that forces are computed in batches.

    A structure stops where it leaves what the model can take.
    """
    begin, moved = clock("cpu"), [start.copy() for start in starts]
    optimizers = [BFGS(atoms, logfile=None) for atoms in moved]
    calls, converged = np.zeros(len(moved), int), np.zeros(len(moved), bool)
    active = list(range(len(moved)))
    for _ in range(STEPS + 1):
        forces = dict(zip(active, forces_of([moved[i] for i in active]), strict=True))
        calls[active] += 1
        active = []
        for i, found in forces.items():
            if found is None:
                continue
            moved[i].calc = SinglePointCalculator(moved[i], forces=found)
            converged[i] = np.linalg.norm(moved[i].get_forces(), axis=1).max() < FMAX
            if not converged[i]:
                optimizers[i].step()
                active.append(i)
        if not active:
            break
    seconds = (clock("cpu") - begin) / len(starts)
    return [
        End(atoms.positions, int(n), bool(done), seconds)
        for atoms, n, done in zip(moved, calls, converged, strict=True)
    ]


def forces_in_emt(atoms: list[Atoms]) -> list[np.ndarray | None]:
    """Compute forces one by one, eV/Å."""
    return [labels_in_emt(one)[1] for one in atoms]


class ModelForces:
    """Forces of a checkpoint, eV/Å, for a batch of structures; None for those it cannot take."""

    def __init__(self, path: Path) -> None:
        self.calculator = load_calculator(path, cpu=True)

    def __call__(self, atoms: list[Atoms]) -> list[np.ndarray | None]:
        sound = [one for one in atoms if self._is_sound(one)]
        found = iter(())
        if sound:
            graphs = [self.calculator.a2g.convert(one) for one in sound]
            batch = data_list_collater(graphs, otf_graph=True)
            out = self.calculator.trainer.predict(batch, per_image=False, disable_tqdm=True)
            ends = np.cumsum([len(one) for one in sound])[:-1]
            found = iter(np.split(out["forces"].double().numpy(force=True), ends))
        kept = set(map(id, sound))
        return [next(found) if id(one) in kept else None for one in atoms]

    @staticmethod
    def _is_sound(atoms: Atoms) -> bool:
        try:
            check_atoms(atoms, 119, None)
        except ValueError:
            return False
        return True


def labels_in_emt(atoms: Atoms) -> tuple[float, np.ndarray]:
    """Compute energy, eV, and forces without constraints, eV/Å, in EMT."""
    copy = atoms.copy()
    copy.calc = EMT()
    return copy.get_potential_energy(), copy.get_forces(apply_constraint=False)
