"""Findings of ``dens data check`` on one data set: their kinds and messages, as text and JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dens.data.soundness import LABELS, MAX_NUMBER
from dens.data.survey.consistency import EnergyScale
from dens.data.survey.displacement import Displacements
from dens.data.survey.forces import ForceHistogram

MIN_CONTACT = 0.5  # closer than this times the sum of their covalent radii, atoms overlap
LARGE_FORCE = 50.0  # eV/Å, on a free atom
UNLABELLED = "no energies or forces: structures only"
EXAMPLES = 5  # listed for each finding

# kind of finding -> message
ERRORS = {
    "unreadable": "records cannot be read",
    "no energy": "structures have no energy",
    "no forces": "structures have no forces, or not one for each atom",
    "not finite": "structures have NaN or infinity in their labels, positions or cell",
    "bad element": f"structures have atomic numbers outside 1 .. {MAX_NUMBER}",
    "no fixed": "structures have no fixed, which losses of free atoms alone need (0 for a free "
    "atom; or set train_on_free_atoms: false)",
    "no free atom": "structures have no free atom",
    "no cell": "periodic structures have no cell, or one without volume",
    "stress": "structures have a stress that is not symmetric, or not finite",
    "overlap": f"structures have atoms closer than {MIN_CONTACT} times their covalent radii",
    "partly labelled": "structures have an energy or forces, and the first one has none",
    "metadata": "metadata.npz does not agree with the records",
}
WARNINGS = {
    "large force": f"structures have a force above {LARGE_FORCE:g} eV/Å on a free atom",
    "duplicate": "structures are copies of an earlier one, same atoms and positions",
    "shared": "structures are copies of one in another split",
    "isolated": "structures have an atom without a neighbour within the cutoff",
    "no reference": "the energies look like totals (convert with --references, or use lin_ref)",
    "units": "the units look wrong",
    "stress scale": "the sign or the unit of the stress looks wrong",
    "stress vacuum": "structures have a stress across vacuum, or without a cell",
    "signs": "forces look like gradients",
    "fields": "batches leave out fields that records lack or have in other shapes",
    "twice": "structures have a label under both of its names, with the same values",
    "open": "structures are open, in a set of periodic ones",
    "no box": "structures have neither cell nor pbc: for models with use_pbc: false",
    "no metadata": "balanced batches need the sizes",
}
_WHOLE = (
    "metadata",
    "no metadata",
    "no reference",
    "units",
    "signs",
    "stress scale",
    "fields",
)  # findings on the whole data set


@dataclass
class Report:
    """Findings of `check` in one data set; `findings` by the keys of `ERRORS` and `WARNINGS`."""

    path: Any  # a path, or several
    structures: int = 0
    measured: int = 0
    elements: Counter = field(default_factory=Counter)  # structures with each symbol
    natoms: list[int] = field(default_factory=list)
    forces: ForceHistogram = field(default_factory=ForceHistogram)
    energies: EnergyScale = field(default_factory=EnergyScale)
    pairs: Displacements = field(default_factory=Displacements)
    fields: dict[str, Counter] = field(default_factory=dict)  # structures by the field's kind
    findings: dict[str, list[str]] = field(default_factory=dict)  # kind -> where
    hashes: dict[bytes, str] = field(default_factory=dict)

    def add(self, kind: str, places: list[str]) -> None:
        """Add findings of one kind."""
        if places:
            self.findings.setdefault(kind, []).extend(places)

    @property
    def name(self) -> str:
        """The path, or all of them."""
        return ", ".join(map(str, self.path)) if isinstance(self.path, list) else str(self.path)

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.findings.keys() & ERRORS.keys()

    @property
    def labelled(self) -> bool:
        """Whether any structure has an energy or forces."""
        return any(name in self.fields for names in LABELS.values() for name in names)

    def to_dict(self) -> dict[str, Any]:
        """Return the report in plain values, for JSON."""
        n = self.natoms or [0]
        return {
            "path": self.name,
            "ok": self.ok,
            "structures": self.structures,
            "measured": self.measured,
            "natoms": {"min": min(n), "mean": float(np.mean(n)), "max": max(n)},
            "elements": dict(self.elements.most_common()),
            "energy": self.energies.to_dict() if self.labelled else None,
            "forces": self.forces.to_dict() if self.labelled else None,
            "pairs": len(self.pairs),
            "findings": [
                {
                    "level": "error" if kind in ERRORS else "warning",
                    "kind": kind,
                    "count": len(places),
                    "message": (ERRORS | WARNINGS)[kind],
                    "examples": places[:EXAMPLES],
                }
                for kind, places in self.findings.items()
            ],
        }

    def text(self) -> str:
        """Format the report for a terminal."""
        facts = self.to_dict()
        sizes = "{min} to {max} atoms, {mean:.1f} on average".format(**facts["natoms"])
        elements = " ".join(f"{symbol} {count}" for symbol, count in facts["elements"].items())
        measured = f"distances computed in {self.measured} structures"
        labels = [self.energies.text(), measured, self.forces.text()]
        lines = [
            f"{self.name}: {self.structures} structures of {sizes}",
            f"elements (structures with them): {elements}",
            *(labels if self.labelled else [UNLABELLED, measured]),
        ]
        if len(self.pairs):
            lines.append(self.pairs.text(self.structures))
        for finding in facts["findings"]:
            where = "; ".join(finding["examples"])
            more = "; ..." if finding["count"] > len(finding["examples"]) else ""
            count = f"{finding['count']} " if finding["kind"] not in _WHOLE else ""
            lines.append(f"{finding['level']}: {count}{finding['message']}: {where}{more}")
        return "\n".join([*lines, "ok" if self.ok else "not ok"])
