"""Rules for labels: units, references, force limit and tags, from ASE structures to records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from torch_geometric.data import Data

from dens.constraints import fixed_atoms, has_other_constraints
from dens.data.references import References
from dens.data.skipped import BadFrame, map_good_frames
from dens.data.soundness import open_or_periodic
from dens.data.sources.ase import FrameSelection, read_units
from dens.data.sources.reading import UNLABELLED, read_labels
from dens.data.sources.search import Source
from dens.data.store.records import atoms_to_data
from dens.data.units import (
    UNITS,
    Units,
    check_named,
    combine_units,
    is_conclusive,
    parse_units,
    read_named_units,
    suspected_units,
)
from dens.graphs.boundaries import CUTOFF, settle_boundaries
from dens.graphs.radius import count_neighbors

FAR = 10.0  # eV per atom; more than any cohesive energy, so energies and references do not match


@dataclass(frozen=True)
class LabelRules:
    """Rules by which structures become records.

    Attributes:
        units: units of the structures; None for eV-A unless an energy contradicts it.
        references: subtracted from the energies.
        max_force: eV/Å; structures with a larger force on a free atom are dropped.
        cutoff: Å; with it, ``metadata.npz`` gets the number of edges as ``neighbors``.
        max_neighbors: limit per atom for that number.
        pbc: TTT or FFF for all structures, see `dens.graphs.boundaries.settle_boundaries`.
        labels: False for structures only: energies and forces are neither needed nor kept.
    """

    units: Units | None = None
    references: References | None = None
    max_force: float | None = None
    cutoff: float | None = None
    max_neighbors: int | None = None
    pbc: str | None = None
    labels: bool = True

    def describe(self) -> dict:
        """Return everything that decides the records, in plain values."""
        references = None
        if self.references:
            coeff = self.references.coeff
            known = {chemical_symbols[z]: float(coeff[z]) for z in np.flatnonzero(~np.isnan(coeff))}
            references = {"source": self.references.source, "coeff": known}
            if self.references.remarks:
                references["remarks"] = list(self.references.remarks)
        return {
            "units": self.units.name if self.units else "eV-A",
            "references": references,
            "max_force": self.max_force,
            "cutoff": self.cutoff,
            "max_neighbors": self.max_neighbors,
            "pbc": self.pbc,
            **({} if self.labels else {"labels": "none", "energy": "not kept"}),
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
            atoms: with energy and forces in the results of its calculator, if `labels`.
            counts: counts for the report, updated.
            sid, fid, md: see `dens.data.store.records.atoms_to_data`.
            reference: eV, subtracted from the energy.

        Returns:
            None if a force exceeds `max_force`.

        Raises:
            ValueError: missing or unsound labels, no free atom, an unknown element or one without
                reference, boundaries that are neither open nor periodic, or an energy that fits
                other units, or units that the structure names and that are others.
        """
        units, found = self.units or UNITS["eV-A"], Counter(frames=1)
        check_named(read_named_units(atoms.info, ignore_unknown=self.units is not None), units)
        energy = forces = None
        if self.labels:
            energy, forces = read_labels(atoms)
            energy, forces = energy * units.energy, forces * units.force
        atoms.set_cell(atoms.cell.array * units.length)
        atoms.positions *= units.length
        try:
            settle_boundaries(atoms, found, self.pbc, self.cutoff or CUTOFF)
        except ValueError as error:
            raise ValueError(f"structure sid={sid} fid={fid}: {error}") from error
        found[_add_tags(atoms)] += 1
        given = {"energy": energy, "forces": forces, "labels": self.labels}
        data = atoms_to_data(atoms, sid=sid, fid=fid, md=md, **given)
        if self.labels and self.units is None:
            _check_size(atoms.numbers, energy, found)
        free = ~fixed_atoms(atoms)
        if not free.any():
            raise ValueError(f"expected at least one free atom, but all {len(atoms)} are fixed")
        limit = self.max_force if self.labels else None
        if limit and np.linalg.norm(forces[free], axis=1).max() > limit:
            counts.update(frames=1, dropped=1)
            return None
        if self.labels:
            self._refer(data, atoms.numbers, found)
            data.y -= reference
        _count_assumptions(atoms, found)
        counts.update(found)
        return data

    def _refer(self, data: Data, numbers: np.ndarray, counts: Counter) -> None:
        """Subtract the references of the elements from the energy."""
        if self.references:
            data.y -= self.references.energy(numbers)
            if abs(data.y) > FAR * len(numbers):
                counts["far_from_references"] += 1

    def make_metadata(self, data: Data) -> dict[str, int]:
        """Make the entries of ``metadata.npz`` beside ``natoms``."""
        entry = {"md": data.md} if "md" in data else {}
        if self.cutoff is not None:
            counts = count_neighbors(*open_or_periodic(data), self.cutoff, self.max_neighbors)
            entry["neighbors"] = int(counts.sum())
        return entry


def _check_size(numbers: np.ndarray, energy: float, counts: Counter) -> None:
    """Refuse an energy that can only be in other units than eV; count one that may be.

    Raises:
        ValueError: names the units.
    """
    suspected = suspected_units(numbers, energy)
    if suspected and is_conclusive(numbers, energy):
        own, _, length = suspected.partition("-")
        alone = f", or --energy-unit {own} where lengths are in Å" if length else ""
        raise ValueError(
            f"the energy {energy:g} is that of all electrons in {suspected}, not in eV: "
            f"give --units {suspected}, or --units eV-A if it is right as it is{alone}"
        )
    if suspected:
        counts[f"may_be_{suspected}"] += 1


def read_format_units(source: Source, given: Units | None) -> Units | None:
    """Read the units that the format of a file tells.

    Args:
        given: by the user.

    Raises:
        ValueError: they are not the user's, or are needed and missing.
    """
    name = read_units(source)
    if source.kind == "npz" and name is None and given is None and source.options.labels:
        raise ValueError(
            f"{source.path}: an .npz does not tell its units: give --units; {UNLABELLED}"
        )
    if source.kind == "cp2k" and given and not UNITS["eV-A"].equals(given):
        raise ValueError(
            f"{source.path}: CP2K's Hartree and Hartree/Bohr become eV and eV/Å by themselves: "
            f"leave out the units, got {given.name}"
        )
    known = "eV-A" if source.kind.startswith("vasp") else name
    if known and given and not parse_units(known).equals(given):
        raise ValueError(f"{source.path}: its units are {known}, but --units says {given.name}")
    return parse_units(name) if name else None


def read_first_units(on_bad: str, frames: FrameSelection) -> Units | None:
    """Read the units that the first frame of a file names; with ``skip``, the first good one.

    Raises:
        ValueError: the frame cannot be read, or its units are not known.
    """
    if frames.source.kind in ("npz", "deepmd", "cp2k") or frames.source.kind.startswith("vasp"):
        return None
    chosen = frames if on_bad == "skip" else frames.select([0])
    found = map_good_frames(lambda _, atoms: read_named_units(atoms.info), chosen, on_bad)
    named = next((names for names in found if not isinstance(names, BadFrame)), None)
    return combine_units(**named) if named else None


def settle_units(rules: LabelRules, named: Mapping[str, Units | None]) -> LabelRules:
    """Take the units that files name, unless the user gave units.

    Args:
        rules: with the user's units, or None.
        named: the units that each file names, by its path; None counts as eV-A beside others.

    Raises:
        ValueError: files in different units.
    """
    if rules.units or not any(named.values()):
        return rules
    distinct: dict[str, str] = {}
    for path, units in named.items():
        distinct.setdefault(units.name if units else "eV-A", path)
    if len(distinct) > 1:
        mixed = ", ".join(f"{name} in {path}" for name, path in distinct.items())
        raise ValueError(
            f"expected sources in the same units, eV-A where none are named, got {mixed}"
        )
    if not all(named.values()):
        return rules  # all in eV-A: those that name none are still checked
    return replace(rules, units=next(iter(named.values())))


def _count_assumptions(atoms: Atoms, counts: Counter) -> None:
    is_periodic = atoms.pbc.any()
    counts["periodic" if is_periodic else "open"] += 1
    if has_other_constraints(atoms):
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
