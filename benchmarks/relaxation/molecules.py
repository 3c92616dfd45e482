"""Read relaxed structures, and make the starts of their relaxations."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from torch import Tensor

from dens.data.store.folders import LmdbFolder
from dens.data.survey.samples import as_sample
from dens.relax.atoms.conversion import Limits, to_structures
from dens.relax.evaluation import noisy_starts
from dens.relax.quality import same_molecule
from dens.relax.structures import Structure

_LEVELS = {"pos": "atom", "atomic_numbers": "atom"}  # the fields that are needed
GIVEN = "pos_start"  # the name of the start that the data hold


@dataclass(frozen=True)
class Set:
    """Relaxed structures of a data set.

    Attributes:
        name: the last parts of its path.
        numbers: of the structures in the data set.
        atoms: the structures.
        given: (n_atoms, 3), Å, what each was relaxed from; None where that is not known.
    """

    name: str
    numbers: list[int]
    atoms: list[Atoms]
    given: list[np.ndarray | None]

    def fingerprint(self) -> str:
        """Hash elements and positions: equal for equal structures."""
        parts = (a.numbers.astype("<i4").tobytes() + a.positions.tobytes() for a in self.atoms)
        return f"{zlib.crc32(b''.join(parts)):08x}"


@dataclass(frozen=True)
class Starts:
    """Unrelaxed structures beside the true ones.

    Attributes:
        name: a standard deviation in Å, or ``pos_start``.
        numbers: of the structures in the data set.
        true, starts: the structures, in the same order.
    """

    name: str
    numbers: list[int]
    true: list[Structure]
    starts: list[Structure]

    def every(self, step: int) -> list[int]:
        """Return the indices of structures whose number is a multiple of ``step``."""
        return [i for i, number in enumerate(self.numbers) if number % step == 0]

    def select(self, rows: Sequence[int]) -> Starts:
        """Return the structures of some indices."""
        lists = (self.numbers, self.true, self.starts)
        return Starts(self.name, *([all_of[i] for i in rows] for all_of in lists))


def note(line: str) -> None:
    """Print a line of progress, beside the results on standard output."""
    print(line, file=sys.stderr, flush=True)


def read_set(path: Path, every: int) -> Set:
    """Read every so many structures of an LMDB folder, the first one included.

    Raises:
        ValueError: it cannot be read, or a record is faulty; names file and record.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist: expected a folder as dens data convert writes it")
    records = LmdbFolder(path)
    found = Set("/".join(path.resolve().parts[-2:]), list(range(0, len(records), every)), [], [])
    for number in found.numbers:
        sample = as_sample(number, records[number], _LEVELS)
        if isinstance(sample, str) or sample.faults:
            reason = sample if isinstance(sample, str) else f"{sample.where}: {sample.faults[0]}"
            raise ValueError(f"{path}: {reason}")
        atoms = Atoms(sample.numbers, sample.pos, cell=sample.cell, pbc=sample.cell is not None)
        if not sample.free.all():
            atoms.set_constraint(FixAtoms(mask=~sample.free))
        found.atoms.append(atoms)
        found.given.append(sample.start)
    return found


def make_starts(
    data: Set, sigmas: Sequence[float], with_given: bool, seed: int, limits: Limits
) -> list[Starts]:
    """Make the starts of relaxations: noise of each level, and what the data hold.

    The noise depends on its level, the seed and a structure's number only, so that it is the same
    for every model and method.

    Raises:
        ValueError: a model with these limits cannot take a structure, or no start is known.
    """
    names = [
        f"record {n} ({a.get_chemical_formula()})"
        for n, a in zip(data.numbers, data.atoms, strict=True)
    ]
    true = to_structures(data.atoms, limits, names)
    found = [
        Starts(f"{sigma:g}", data.numbers, true, noisy_starts(true, sigma, seed, data.numbers))
        for sigma in sigmas
    ]
    if with_given:
        known = [i for i, pos in enumerate(data.given) if pos is not None]
        if not known:
            raise ValueError(
                f"{data.name} has no field pos_start, so leave out --starts, or convert it with "
                "dens data convert --pairs"
            )
        note(f"{GIVEN}: {len(known)} structures; {len(true) - len(known)} have none: left out")
        pairs = [(true[i], torch.from_numpy(data.given[i])) for i in known]
        starts = [Structure(s.numbers, pos, s.cell, s.fixed) for s, pos in pairs]
        numbers = [data.numbers[i] for i in known]
        found.append(Starts(GIVEN, numbers, [s for s, _ in pairs], starts))
    return found


def same_molecules(true: Sequence[Structure], positions: Sequence[Tensor]) -> list[bool | None]:
    """Tell of each molecule whether its bonds and stereochemistry are those of the true one.

    Args:
        true: the true molecules.
        positions: (n_atoms, 3) of each, Å.

    Returns:
        None where no bonds can be perceived in the true one.
    """
    pairs = zip(true, positions, strict=True)
    return [same_molecule(s.numbers, pos, s.pos) for s, pos in pairs]


def share(values: Sequence[bool | None]) -> float:
    """Return the share of True among what is not None; NaN if that is nothing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")
