"""Label bulk crystals with ASE's EMT potential: strained and rattled ones, relaxations of cells."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.stress import voigt_6_to_full_3x3_stress

# Å, EMT's lattice constants of the face-centred cubic metals, as its parameters say
LATTICE = {"Ni": 3.49, "Cu": 3.59, "Pd": 3.88, "Pt": 3.93, "Au": 4.06, "Al": 3.99}
VOLUME_STRAIN, SHEAR_STRAIN = 0.06, 0.03  # largest random strain of a length
RATTLES = (0.0, 0.15)  # Å, standard deviation of the displacements
RELAX_STEPS, RELAX_FMAX = 15, 0.02  # eV/Å; of the cell, eV


class Crystal(NamedTuple):
    """A crystal to start from: cubic, ideal, with a random share of two metals."""

    sid: int
    atoms: Atoms
    rng: np.random.Generator  # of what is done with it


class Labelled(NamedTuple):
    """A structure with its labels."""

    fid: int
    atoms: Atoms
    energy: float  # eV
    forces: np.ndarray  # (n_atoms, 3), eV/Å
    stress: np.ndarray  # (3, 3), eV/Å^3, with ASE's sign


def make_crystals(seed: tuple[int, int]) -> Iterator[Crystal]:
    """Make crystals of 4 or 8 atoms without end, each a function of the seed and its number.

    Args:
        seed: of the data, and the number of the split.
    """
    metals = list(LATTICE)
    for number in count():
        rng = np.random.default_rng((*seed, number + 1))  # see dens.data.sources.emt.make_systems
        first, second = rng.choice(metals, 2, replace=False)
        repeats = int(rng.integers(1, 3))
        atoms = bulk(first, cubic=True) * (repeats, 1, 1)
        share = rng.choice([0.0, 0.0, 0.25, 0.5])
        atoms.symbols[rng.permutation(len(atoms))[: round(share * len(atoms))]] = second
        mean = np.mean([LATTICE[symbol] for symbol in atoms.symbols])
        atoms.set_cell(mean * np.array([repeats, 1, 1]), scale_atoms=True)
        yield Crystal(seed[1] * 1_000_000 + number, atoms, rng)


def run_frames(crystal: Crystal, number: int) -> list[Labelled]:
    """Label random strains of a crystal, and steps of the relaxation of another; half of each."""
    random = [_disturbed(crystal) for _ in range(number // 2)]
    frames = [label(atoms, fid) for fid, atoms in enumerate(random)]
    relaxation = _relaxation(_disturbed(crystal), first=len(frames))
    picks = np.linspace(0, len(relaxation) - 1, min(number - len(frames), len(relaxation)))
    return [*frames, *(relaxation[i] for i in picks.round().astype(int))]


def label(atoms: Atoms, fid: int = 0) -> Labelled:
    """Compute the labels of a structure with EMT."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    atoms.get_stress()
    return _snapshot(atoms, fid)


def _snapshot(atoms: Atoms, fid: int) -> Labelled:
    results = atoms.calc.results  # asking the structure would compare it with the calculator's copy
    stress = voigt_6_to_full_3x3_stress(results["stress"])
    return Labelled(fid, atoms.copy(), results["energy"], results["forces"].copy(), stress)


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    """Strain a structure: cell and positions are multiplied by ``1 + strain``, (3, 3)."""
    other = atoms.copy()
    other.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return other


def _disturbed(crystal: Crystal) -> Atoms:
    rng = crystal.rng
    shear = rng.uniform(-SHEAR_STRAIN, SHEAR_STRAIN, size=(3, 3))
    volume = rng.uniform(-VOLUME_STRAIN, VOLUME_STRAIN) * np.eye(3)
    atoms = strained(crystal.atoms, volume + (shear + shear.T) / 2)
    scale = rng.uniform(*RATTLES)
    atoms.positions += rng.normal(scale=scale, size=atoms.positions.shape)
    return atoms


def _relaxation(atoms: Atoms, first: int) -> list[Labelled]:
    """Relax positions and cell; label the structure at the start and after every step."""
    atoms.calc = EMT()
    steps = FIRE(FrechetCellFilter(atoms), logfile=None).irun(fmax=RELAX_FMAX, steps=RELAX_STEPS)
    return [_snapshot(atoms, fid) for fid, _ in enumerate(steps, start=first)]
