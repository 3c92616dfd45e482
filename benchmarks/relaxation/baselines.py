"""Relax molecules with MMFF94 (RDKit) and GFN2-xTB (tblite), one at a time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.relaxation.molecules import Starts, note
from dens.relax.evaluation import Measured, rmsd
from dens.relax.quality import perceive_molecule
from dens.relax.structures import Structure

_MMFF_ROUNDS, _MMFF_STEPS = 10, 2000
_ROOT = Path(__file__).parents[2]


class Minimum(NamedTuple):
    """Where a baseline ends."""

    pos: Tensor  # (n_atoms, 3) float64 | Å
    seconds: float  # process time
    converged: bool = False
    steps: float = math.nan  # NaN: not known
    error: str | None = None  # why there is no minimum


def relax_mmff94(starts: Starts) -> list[Minimum]:
    """Relax with MMFF94, which is told the bonds of the true structures; these are not timed."""
    pairs = zip(starts.true, starts.starts, strict=True)
    return [_relax_mmff94(true, start) for true, start in pairs]


def _relax_mmff94(true: Structure, start: Structure) -> Minimum:
    molecule = perceive_molecule(true.numbers, true.pos)
    if molecule is None:
        return Minimum(start.pos, 0.0, error="no bonds are perceived in its true structure")
    from rdkit.Chem import rdForceFieldHelpers

    begin = time.process_time()
    conformer = molecule.GetConformer()
    for atom, pos in enumerate(start.pos.tolist()):
        conformer.SetAtomPosition(atom, pos)
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(molecule)
    if properties is None:
        seconds = time.process_time() - begin
        return Minimum(start.pos, seconds, error="MMFF94 lacks parameters for it")
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(molecule, properties)
    field.Initialize()
    converged = any(field.Minimize(maxIts=_MMFF_STEPS) == 0 for _ in range(_MMFF_ROUNDS))
    seconds = time.process_time() - begin
    return Minimum(torch.tensor(conformer.GetPositions(), dtype=torch.float64), seconds, converged)


def relax_gfn2(starts: Starts) -> list[Minimum]:
    """Relax with GFN2-xTB and BFGS, see :mod:`benchmarks.relaxation.gfn2`.

    Raises:
        ValueError: tblite is not installed, or its process has died.
    """
    molecules = [(start.numbers.tolist(), start.pos.tolist()) for start in starts.starts]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.relaxation.gfn2"],
        input=json.dumps(molecules),
        capture_output=True,
        text=True,
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [f"status {run.returncode}"])[-1]
        raise ValueError(f"--baselines gfn2: {last}")
    return [
        Minimum(
            torch.tensor(found["pos"], dtype=torch.float64),
            found["seconds"],
            found["converged"],
            math.nan if found["steps"] is None else float(found["steps"]),
            found["error"],
        )
        for found in json.loads(run.stdout)
    ]


class Baseline(NamedTuple):
    """A method to compare with."""

    title: str
    relax: Callable[[Starts], list[Minimum]]


BASELINES = {
    "mmff94": Baseline("MMFF94, given the bonds", relax_mmff94),
    "gfn2": Baseline("GFN2-xTB, BFGS", relax_gfn2),
}


class BaselineRun(NamedTuple):
    """What a baseline makes of starts, and its process seconds."""

    measured: Measured
    positions: list[Tensor]
    seconds: float


def run_baseline(name: str, starts: Starts) -> BaselineRun:
    """Relax open structures with a baseline, one at a time.

    Where it fails the result is where it stopped, not converged; one line says how many and why.

    Raises:
        ValueError: a structure is periodic or has fixed atoms.
    """
    if any(s.cell is not None or s.fixed is not None for s in starts.starts):
        raise ValueError(
            f"--baselines {name} is for molecules: open structures without fixed atoms"
        )
    title, relax = BASELINES[name]
    ends = relax(starts)
    if errors := [end.error for end in ends if end.error]:
        note(
            f"{title}, start {starts.name}: {len(errors)} of {len(ends)} failed, and count as not "
            f"converged where they stopped; the first: {errors[0]}"
        )
    measured = Measured(
        before=rmsd(starts.true, [start.pos for start in starts.starts]),
        after=rmsd(starts.true, [end.pos for end in ends]),
        calls=torch.tensor([end.steps for end in ends], dtype=torch.float64),
        converged=torch.tensor([end.converged for end in ends]),
        found=torch.full((len(ends),), math.nan, dtype=torch.float64),
    )
    return BaselineRun(measured, [end.pos for end in ends], sum(end.seconds for end in ends))
