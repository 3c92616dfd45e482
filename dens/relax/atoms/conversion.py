"""Convert ASE's structures to those that are relaxed, and refuse those that cannot be."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from dens.constraints import fixed_atoms, has_other_constraints
from dens.graphs.boundaries import CUTOFF, describe_vacuum, settle_boundaries
from dens.graphs.model_input import check_atoms
from dens.relax.loop import Relaxed
from dens.relax.structures import Denoiser, Structure

_CONVERGED, _CALLS = "relax_converged", "relax_calls"  # keys of info
_MAX_ERRORS = 20
_ADVICE = "set its pbc to True if the cell is that of a crystal, to False if the structure is open"


class Limits(NamedTuple):
    """Limits of the structures that a model can take."""

    elements: Sequence[int] | None = None  # atomic numbers that were trained; None: not known
    n_numbers: int = 119  # atomic numbers must be below it
    cutoff: float = CUTOFF  # Å, that the vacuum of slabs should exceed
    periodic: bool = True  # whether the model reads the cell

    @classmethod
    def of(cls, denoiser: Denoiser) -> Limits:
        """Read the limits from the attributes of a denoiser that have their names."""
        values = {name: getattr(denoiser, name) for name in cls._fields if hasattr(denoiser, name)}
        return cls(**values)


def to_structures(
    atoms: Sequence[Atoms], limits: Limits, names: Sequence[str] | None = None
) -> list[Structure]:
    """Convert structures, which are not modified.

    Structures that are periodic in some directions only become periodic in all, as conversion of
    training data makes them, if there is vacuum along the others; one logged line says how many.

    Args:
        atoms: the structures.
        limits: what the model can take.
        names: of the structures, for messages; by default number and formula.

    Raises:
        ValueError: one line for each structure that the model has no answer for, that has no free
            atom or a constraint that fixes atoms in part, or that is periodic without vacuum.
    """
    if names is None:
        names = [f"structure {i} ({a.get_chemical_formula()})" for i, a in enumerate(atoms)]
    found = convert_each(atoms, limits)
    pairs = zip(names, found, strict=True)
    errors = [f"{name}: {one}" for name, one in pairs if isinstance(one, str)]
    if errors:
        more = len(errors) - _MAX_ERRORS
        rest = [f"and {more} structures more that cannot be relaxed"] if more > 0 else []
        raise ValueError("\n".join([*errors[:_MAX_ERRORS], *rest]))
    return [one for one in found if not isinstance(one, str)]


def convert_each(atoms: Sequence[Atoms], limits: Limits) -> list[Structure | str]:
    """Convert structures as :func:`to_structures`; give the reason for one that cannot be."""
    found: list[Structure | str] = []
    counts: Counter[str] = Counter()
    for one in atoms:
        try:
            found.append(_to_structure(one, limits, counts))
        except ValueError as error:
            found.append(str(error))
    if n := counts["periodic_made"]:
        narrow = counts["narrow_vacuum"]
        logging.warning(
            f"{n} of {len(atoms)} structures are periodic in some directions only, and are relaxed "
            f"as periodic in all, {describe_vacuum(counts, 'periodic_made')}"
            + (
                f"; {narrow} of them see their images, less than {limits.cutoff:g} Å away"
                * (narrow > 0)
            )
        )
    return found


def _to_structure(atoms: Atoms, limits: Limits, counts: Counter) -> Structure:
    """Convert one structure; ``counts`` of boundaries are updated."""
    check_atoms(atoms, limits.n_numbers, limits.elements, periodic=limits.periodic)
    fixed = fixed_atoms(atoms)
    if has_other_constraints(atoms):
        kinds = ", ".join(sorted({type(c).__name__ for c in atoms.constraints}))
        raise ValueError(
            f"expected constraints that hold atoms entirely, such as FixAtoms, got {kinds}"
        )
    if fixed.all():
        raise ValueError(f"expected a free atom, all {len(atoms)} are fixed")
    if atoms.pbc.any() and not limits.periodic:
        raise ValueError(
            f"expected an open structure, as the model reads no cell, got pbc {atoms.pbc.tolist()}"
        )
    settled = atoms.copy()
    settle_boundaries(settled, counts, cutoff=limits.cutoff, advice=_ADVICE)
    return Structure(
        numbers=torch.from_numpy(atoms.numbers.astype(np.int64)),
        pos=torch.from_numpy(atoms.positions.astype(np.float64)),
        cell=torch.from_numpy(settled.cell.array.copy()) if settled.pbc.any() else None,
        fixed=torch.from_numpy(fixed) if fixed.any() else None,
    )


def move_atoms(atoms: Atoms, pos: Tensor) -> None:
    """Set the positions of a structure, in place: (n_atoms, 3), Å; fixed ones are equal anyway."""
    # constraints would add to positions and subtract again, which rounds
    atoms.set_positions(pos.numpy(), apply_constraint=False)


def moved_copy(atoms: Atoms, pos: Tensor) -> Atoms:
    """Copy a structure, without its calculator, to other positions: (n_atoms, 3), Å."""
    copy = atoms.copy()
    move_atoms(copy, pos)
    return copy


def relaxed_copy(atoms: Atoms, relaxed: Relaxed) -> Atoms:
    """Copy a structure to where its relaxation ended, with the outcome in ``info``."""
    copy = moved_copy(atoms, relaxed.pos)
    copy.info |= {_CONVERGED: relaxed.converged, _CALLS: relaxed.calls}
    return copy


def read_outcome(atoms: Atoms) -> tuple[bool, int]:
    """Read from a structure of :func:`relaxed_copy` whether it converged, and in how many calls."""
    return bool(atoms.info.get(_CONVERGED, False)), int(atoms.info.get(_CALLS, 0))
