"""Rules for labels: units, references, force limit and tags, from ASE structures to records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.data import chemical_symbols
from torch_geometric.data import Data

from dens.data.references import References
from dens.data.soundness import open_or_periodic
from dens.data.sources.ase import read_labels
from dens.data.store.records import atoms_to_data, fixed_atoms
from dens.data.units import UNITS, Units, suspected_units
from dens.graphs.radius import count_neighbors


@dataclass(frozen=True)
class LabelRules:
    """Rules by which structures become records.

    Attributes:
        units: units of the structures; None for eV-A unless an energy contradicts it.
        references: subtracted from the energies.
        max_force: eV/Å; structures with a larger force on a free atom are dropped.
        cutoff: Å; with it, ``metadata.npz`` gets the number of edges as ``neighbors``.
        max_neighbors: limit per atom for that number.
    """

    units: Units | None = None
    references: References | None = None
    max_force: float | None = None
    cutoff: float | None = None
    max_neighbors: int | None = None

    def describe(self) -> dict:
        """Return everything that decides the records, in plain values."""
        references = None
        if self.references:
            coeff = self.references.coeff
            known = {chemical_symbols[z]: float(coeff[z]) for z in np.flatnonzero(~np.isnan(coeff))}
            references = {"source": self.references.source, "coeff": known}
        return {
            "units": self.units.name if self.units else "eV-A",
            "references": references,
            "max_force": self.max_force,
            "cutoff": self.cutoff,
            "max_neighbors": self.max_neighbors,
        }

    def make_record(
        self,
        atoms: Atoms,
        counts: Counter,
        *,
        sid: int | str,
        fid: int,
        reference: float = 0.0,
        md: bool | None = None,
    ) -> Data | None:
        """Make the record of a structure, whose lengths become Å in place.

        Args:
            atoms: with energy and forces in the results of its calculator.
            counts: counts for the report, updated.
            sid, fid, md: see `dens.data.store.records.atoms_to_data`.
            reference: eV, subtracted from the energy.

        Returns:
            None if a force exceeds `max_force`.

        Raises:
            ValueError: missing or unsound labels, no free atom, an unknown element or one without
                reference, or an energy that fits other units.
        """
        units = self.units or UNITS["eV-A"]
        energy, forces = read_labels(atoms)
        energy, forces = energy * units.energy, forces * units.force
        atoms.set_cell(atoms.cell.array * units.length)
        atoms.positions *= units.length
        tags_from = _add_tags(atoms)
        data = atoms_to_data(atoms, sid=sid, fid=fid, energy=energy, forces=forces, md=md)
        suspected = suspected_units(atoms.numbers, energy)
        if self.units is None and suspected:
            raise ValueError(
                f"the energy {energy:g} is that of all electrons in {suspected}, not in eV: "
                f"give --units {suspected}, or --units eV-A if it is right as it is"
            )
        free = ~fixed_atoms(atoms)
        if not free.any():
            raise ValueError(f"expected at least one free atom, but all {len(atoms)} are fixed")
        counts["frames"] += 1
        if self.max_force and np.linalg.norm(forces[free], axis=1).max() > self.max_force:
            counts["dropped"] += 1
            return None
        if self.references:
            data.y -= self.references.energy(atoms.numbers)
        data.y -= reference
        counts[tags_from] += 1
        _count_assumptions(atoms, counts)
        return data

    def make_metadata(self, data: Data) -> dict[str, int]:
        """Make the entries of ``metadata.npz`` beside ``natoms``."""
        entry = {"md": data.md} if "md" in data else {}
        if self.cutoff is not None:
            counts = count_neighbors(*open_or_periodic(data), self.cutoff, self.max_neighbors)
            entry["neighbors"] = int(counts.sum())
        return entry


def _count_assumptions(atoms: Atoms, counts: Counter) -> None:
    is_periodic = atoms.pbc.any()
    counts["periodic" if is_periodic else "open"] += 1
    if any(not isinstance(constraint, FixAtoms) for constraint in atoms.constraints):
        counts["other_constraints"] += 1
    if atoms.cell.any() and not is_periodic:
        counts["cells_dropped"] += 1


def _add_tags(atoms: Atoms) -> str:
    """Give tags to a structure without any: 0 to fixed atoms and 1 to free ones, or 0 to all if no
    atom is fixed. Return the source of the tags, for the report."""
    if atoms.has("tags"):
        return "tags_kept"
    fixed = fixed_atoms(atoms)
    atoms.set_tags(np.where(fixed, 0, 1) if fixed.any() else 0)
    return "tags_from_fixed" if fixed.any() else "tags_zero"
