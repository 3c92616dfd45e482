"""From structures as ASE gives them to records: units, references, limits, tags."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.data import chemical_symbols
from torch_geometric.data import Data

from dens.data.convert.build import Prepared
from dens.data.references import References
from dens.data.soundness import open_or_periodic
from dens.data.store.records import atoms_to_data, fixed_atoms, pickle_record
from dens.data.units import UNITS, Units, suspected_units
from dens.graphs.radius import count_neighbors


@dataclass(frozen=True)
class Labels:
    """Of one structure: ``energy`` eV, minus references if any; ``forces`` (n_atoms, 3) eV/Å."""

    energy: float
    forces: np.ndarray


@dataclass(frozen=True)
class Recipe:
    """How structures become records.

    Attributes:
        units: those of the structures; None for eV-A unless an energy tells otherwise.
        references: what to subtract from the energies.
        max_force: eV/Å; structures with a larger force on a free atom are dropped.
        cutoff: Å; with it, the number of edges goes into ``metadata.npz`` as ``neighbors``.
        max_neighbors: of each atom, for that number.
    """

    units: Units | None = None
    references: References | None = None
    max_force: float | None = None
    cutoff: float | None = None
    max_neighbors: int | None = None

    def describe(self) -> dict:
        """What decides the records, in plain values."""
        references = self.references
        return {
            "units": self.units.name if self.units else "eV-A",
            "references": references and {"source": references.source, **self._coefficients()},
            "max_force": self.max_force,
            "cutoff": self.cutoff,
            "max_neighbors": self.max_neighbors,
        }

    def _coefficients(self) -> dict:
        coeff = self.references.coeff
        present = np.flatnonzero(~np.isnan(coeff))
        return {"coeff": {chemical_symbols[z]: float(coeff[z]) for z in present}}

    def labels(self, atoms: Atoms) -> Labels | None:
        """The labels of a structure; None where it is to be dropped. Converts the structure's
        lengths to Å in place.

        Raises:
            ValueError: missing labels, no free atom, an element that is none or has no reference,
                an energy in other units than it should have.
        """
        units = self.units or UNITS["eV-A"]
        energy, forces = _read_labels(atoms)
        _check_atoms(atoms)
        energy, forces = energy * units.energy, forces * units.force
        atoms.set_cell(atoms.cell.array * units.length)
        atoms.positions *= units.length
        suspected = suspected_units(atoms.numbers, energy)
        if self.units is None and suspected:
            raise ValueError(
                f"the energy {energy:g} is that of all electrons in {suspected}, not in eV: "
                f"give --units {suspected}, or --units eV-A if it is right as it is"
            )
        free = ~fixed_atoms(atoms)
        if self.max_force and np.linalg.norm(forces[free], axis=1).max() > self.max_force:
            return None
        if self.references:
            energy -= self.references.energy(atoms.numbers)
        return Labels(energy, forces)

    def add(
        self,
        prepared: Prepared,
        atoms: Atoms,
        *,
        sid: int | str,
        fid: int,
        reference: float = 0.0,
        md: bool | None = None,
    ) -> None:
        """Add the record of a structure, with ``reference`` (eV) subtracted from its energy.

        Raises:
            ValueError: see `labels` and `dens.data.store.records.atoms_to_data`.
        """
        counts = prepared.counts
        counts["frames"] += 1
        labels = self.labels(atoms)
        if labels is None:
            counts["dropped"] += 1
            return
        counts[_settle_tags(atoms)] += 1
        counts["periodic" if atoms.pbc.any() else "open"] += 1
        if any(not isinstance(constraint, FixAtoms) for constraint in atoms.constraints):
            counts["other_constraints"] += 1
        if atoms.cell.any() and not atoms.pbc.any():
            counts["cells_dropped"] += 1
        energy = labels.energy - reference
        data = atoms_to_data(atoms, sid=sid, fid=fid, energy=energy, forces=labels.forces, md=md)
        prepared.payloads.append(pickle_record(data))
        prepared.metadata.append(self._metadata(data))

    def _metadata(self, data: Data) -> dict[str, int]:
        entry = {"natoms": data.natoms}
        if "md" in data:
            entry["md"] = data.md
        if self.cutoff is not None:
            counts = count_neighbors(*open_or_periodic(data), self.cutoff, self.max_neighbors)
            entry["neighbors"] = int(counts.sum())
        return entry


def _read_labels(atoms: Atoms) -> tuple[float, np.ndarray]:
    # straight from the calculator's results: asking the structure would compare it with a copy
    results = getattr(atoms.calc, "results", {})
    if results.get("energy") is None or results.get("forces") is None:
        has = [name for name, value in results.items() if value is not None]
        known = ", ".join(map(str, [*has, *atoms.info, *atoms.arrays]))
        raise ValueError(f"expected energy and forces, got only {known}")
    energy = np.asarray(results["energy"], dtype=float)
    forces = np.asarray(results["forces"], dtype=float)
    if energy.size != 1 or forces.shape != (len(atoms), 3):
        raise ValueError(
            f"expected one energy and forces ({len(atoms)}, 3), "
            f"got {energy.shape} and {forces.shape}"
        )
    for name, values in (("energy", energy), ("forces", forces), ("positions", atoms.positions)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    return energy.item(), forces


def _check_atoms(atoms: Atoms) -> None:
    if len(atoms) == 0:
        raise ValueError("expected atoms, got none")
    for number in (atoms.numbers.min(), atoms.numbers.max()):
        if not 1 <= number < len(chemical_symbols):
            raise ValueError(f"atomic numbers must be in 1 .. 118, got {number}")
    if fixed_atoms(atoms).all():
        raise ValueError(f"expected at least one free atom, but all {len(atoms)} are fixed")


def _settle_tags(atoms: Atoms) -> str:
    """Give tags to a structure that has none: 0 to fixed atoms, 1 to free ones; 0 to all where none
    is fixed. Returns what was done, for the report."""
    if atoms.has("tags"):
        return "tags_kept"
    fixed = fixed_atoms(atoms)
    atoms.set_tags(np.where(fixed, 0, 1) if fixed.any() else 0)
    return "tags_from_fixed" if fixed.any() else "tags_zero"
