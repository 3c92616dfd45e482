"""``dens data check``: what is in a data set, and what is wrong with it.

Errors are what training fails on or learns nonsense from; the exit status is then 1. Warnings are
what a person should look at.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from ase.data import chemical_symbols, covalent_radii

from dens.data.survey.consistency import EnergyScale, ForceScale
from dens.data.survey.forces import ForceHistogram
from dens.data.survey.samples import Sample, dataset_settings, draw, find_splits, read_samples
from dens.graphs.pairs import pairs_within

MIN_CONTACT = 0.5  # closer than this times the sum of their covalent radii, atoms overlap
LARGE_FORCE = 50.0  # eV/Å, on a free atom
MEASURED = 1000  # structures whose distances are looked at, by default
CUTOFF = 12.0  # Å, where no config gives one
EXAMPLES = 5  # named for each finding

ERRORS = {
    "unreadable": "records cannot be read",
    "no energy": "structures have no energy",
    "no forces": "structures have no forces, or not one for each atom",
    "not finite": "structures have NaN or infinity in their labels, positions or cell",
    "bad element": "structures have atomic numbers outside 1 .. 118",
    "no free atom": "structures have no free atom",
    "no cell": "periodic structures have a cell without volume",
    "overlap": f"structures have atoms closer than {MIN_CONTACT} times their covalent radii",
    "metadata": "metadata.npz does not agree with the records",
}
WARNINGS = {
    "large force": f"structures have a force above {LARGE_FORCE:g} eV/Å on a free atom",
    "duplicate": "structures are copies of an earlier one, same atoms and positions",
    "shared": "structures are copies of one in another split",
    "isolated": "structures have an atom without a neighbour within the cutoff",
    "no reference": "the energies look like totals (convert with --references, or use lin_ref)",
    "units": "the units look wrong",
    "no metadata": "balanced batches need the sizes",
}


@dataclass
class Finding:
    """How often something was found, and where first."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, where: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(where)


@dataclass
class Report:
    """What `check` found in one data set; `findings` by the keys of `ERRORS` and `WARNINGS`."""

    path: Path
    structures: int = 0
    measured: int = 0
    elements: Counter = field(default_factory=Counter)  # structures that contain it, by symbol
    natoms: list[int] = field(default_factory=list)
    forces: ForceHistogram = field(default_factory=ForceHistogram)
    energies: EnergyScale = field(default_factory=EnergyScale)
    findings: dict[str, Finding] = field(default_factory=lambda: defaultdict(Finding))
    hashes: dict[bytes, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.findings.keys() & ERRORS.keys()

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain values."""
        n = self.natoms or [0]
        return {
            "path": str(self.path),
            "ok": self.ok,
            "structures": self.structures,
            "measured": self.measured,
            "natoms": {"min": min(n), "mean": float(np.mean(n)), "max": max(n)},
            "elements": dict(self.elements.most_common()),
            "energy": self.energies.to_dict(),
            "forces": self.forces.to_dict(),
            "findings": [
                {
                    "level": "error" if kind in ERRORS else "warning",
                    "kind": kind,
                    "count": finding.count,
                    "message": (ERRORS | WARNINGS)[kind],
                    "examples": finding.examples,
                }
                for kind, finding in self.findings.items()
            ],
        }

    def text(self) -> str:
        """The report for a terminal."""
        facts = self.to_dict()
        sizes = "{min} to {max} atoms, {mean:.1f} on average".format(**facts["natoms"])
        lines = [
            f"{self.path}: {self.structures} structures of {sizes}",
            "elements (structures with them): "
            + " ".join(f"{symbol} {count}" for symbol, count in facts["elements"].items()),
            self.energies.text(),
            f"distances looked at in {self.measured} structures",
            self.forces.text(),
        ]
        for finding in facts["findings"]:
            where = "; ".join(finding["examples"])
            more = "; ..." if finding["count"] > len(finding["examples"]) else ""
            count = f"{finding['count']} " if finding["kind"] not in _WHOLE else ""
            lines.append(f"{finding['level']}: {count}{finding['message']}: {where}{more}")
        return "\n".join([*lines, "ok" if self.ok else "not ok"])


_WHOLE = ("metadata", "no metadata", "no reference", "units")  # findings on the data set as a whole


def check(
    dataset: Any,
    path: Path,
    *,
    cutoff: float = CUTOFF,
    measured: int | None = MEASURED,
    metadata: Mapping[str, np.ndarray] | None,
) -> Report:
    """Look at every record of a data set, and at the distances in some.

    Args:
        dataset: from `dens.fairchem1.data.datasets.open_dataset`.
        path: where it is, for the report.
        cutoff: Å, for isolated atoms.
        measured: in how many structures, drawn at random with a fixed seed, distances are computed;
            None for all.
        metadata: from `dens.fairchem1.data.datasets.read_metadata`.
    """
    report = Report(path, structures=len(dataset))
    chosen = set(draw(len(dataset), measured).tolist())
    report.measured = len(chosen)
    scale = ForceScale()
    for i, sample in enumerate(read_samples(dataset)):
        if isinstance(sample, str):
            report.findings["unreadable"].add(sample)
            report.natoms.append(0)
            continue
        _check_record(report, sample)
        if not _is_sound(sample):
            continue
        scale.add(sample)
        if i in chosen:
            _check_distances(report, sample, cutoff)
    _check_metadata(report, metadata)
    for line in (*scale.findings(), *report.energies.unit_findings(), *report.forces.findings()):
        report.findings["units"].add(line)
    for line in report.energies.reference_findings():
        report.findings["no reference"].add(line)
    return report


def _check_record(report: Report, sample: Sample) -> None:
    def found(kind: str) -> None:
        report.findings[kind].add(sample.where)

    report.natoms.append(len(sample.numbers))
    bad = (sample.numbers < 1) | (sample.numbers >= len(chemical_symbols))
    report.elements.update(chemical_symbols[z] for z in np.unique(sample.numbers[~bad]))
    if bad.any():
        found("bad element")
    if not sample.free.any():
        found("no free atom")
    if sample.energy is None:
        found("no energy")
    elif not bad.any():
        report.energies.add(sample.numbers, sample.energy)
    if sample.forces is None or sample.forces.shape != sample.pos.shape:
        found("no forces")
    else:
        if report.forces.add(sample.forces[sample.free]) > LARGE_FORCE:
            found("large force")
    parts = (sample.pos, sample.cell, sample.energy, sample.forces)
    if not all(np.isfinite(part).all() for part in parts if part is not None):
        found("not finite")
    elif sample.cell is not None and abs(np.linalg.det(sample.cell)) < 1e-6:
        found("no cell")
    _check_copies(report, sample)


def _check_copies(report: Report, sample: Sample) -> None:
    parts = (sample.numbers, sample.pos.round(4), sample.cell)
    blob = b"".join(np.asarray(part).tobytes() for part in parts if part is not None)
    key = hashlib.blake2b(blob, digest_size=16).digest()
    if key in report.hashes:
        report.findings["duplicate"].add(f"{sample.where} of {report.hashes[key]}")
    else:
        report.hashes[key] = sample.where


def _is_sound(sample: Sample) -> bool:
    """Whether distances mean something."""
    known = (sample.numbers >= 1) & (sample.numbers < len(chemical_symbols))
    if not (known.all() and np.isfinite(sample.pos).all()):
        return False
    cell = sample.cell
    return cell is None or (np.isfinite(cell).all() and abs(np.linalg.det(cell)) > 1e-6)


def _check_distances(report: Report, sample: Sample, cutoff: float) -> None:
    radii = covalent_radii[sample.numbers]
    # short first: nearly every atom has a neighbour there, and images are few
    near = min(cutoff, max(3.0, 2 * MIN_CONTACT * radii.max()))
    target, source, squared = pairs_within(sample.pos, sample.cell, near)
    if (np.sqrt(squared) < MIN_CONTACT * (radii[target] + radii[source])).any():
        report.findings["overlap"].add(sample.where)
    report.energies.add_contacts(sample, target, source, squared)
    if len(np.unique(target)) < len(sample.pos):
        target, _, _ = pairs_within(sample.pos, sample.cell, cutoff)
        if len(np.unique(target)) < len(sample.pos):
            report.findings["isolated"].add(sample.where)


def _check_metadata(report: Report, metadata: Mapping[str, np.ndarray] | None) -> None:
    if metadata is None or "natoms" not in metadata:
        report.findings["no metadata"].add("there is no metadata.npz with natoms")
        return
    given = metadata["natoms"]
    if len(given) != len(report.natoms):
        report.findings["metadata"].add(
            f"natoms has {len(given)} entries for {len(report.natoms)} records"
        )
        return
    wrong = np.flatnonzero(given != np.array(report.natoms))
    for i in wrong[:EXAMPLES]:
        report.findings["metadata"].add(f"record {i}: {given[i]} for {report.natoms[i]} atoms")


def check_shared(reports: list[Report]) -> None:
    """Find structures that are in several data sets."""
    for later, report in enumerate(reports):
        for earlier in reports[:later]:
            for key in report.hashes.keys() & earlier.hashes.keys():
                where = f"{report.hashes[key]} of {earlier.hashes[key]} in {earlier.path.name}"
                report.findings["shared"].add(where)


@click.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--config", type=click.Path(path_type=Path), help="Training config: reader, cutoff.")
@click.option("--cutoff", type=click.FloatRange(0, min_open=True), help="Å, for isolated atoms.")
@click.option(
    "--measured", default=MEASURED, show_default=True, help="Look at distances in so many; 0: all."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write the force histogram, a PNG.")
@click.pass_context
def check_command(ctx, folder, config, cutoff, measured, as_json, plot) -> None:
    """Look for what is wrong with the LMDB FOLDER, or with every split in it.

    The exit status is 1 where there are errors. With --config, records are read as its
    dataset.train says (format, key_mapping, lin_ref, oc20_ref, ...).
    """
    from dens.data.survey.stats import graph_from
    from dens.fairchem1.config.read import read_config
    from dens.fairchem1.data.datasets import open_dataset, read_metadata

    loaded = read_config(config) if config else None
    settings = dataset_settings(loaded)
    graph = graph_from(loaded, cutoff, None)
    reports = []
    for path in find_splits(folder).values():
        dataset = open_dataset(path, settings)
        options = {"measured": measured or None, "metadata": read_metadata(dataset)}
        reports.append(check(dataset, path, cutoff=graph.cutoff if graph else CUTOFF, **options))
    check_shared(reports)
    if as_json:
        click.echo(json.dumps([report.to_dict() for report in reports], indent=1))
    else:
        click.echo("\n\n".join(report.text() for report in reports))
    if plot is not None:
        ForceHistogram.plot({report.path.name: report.forces for report in reports}, plot)
    if not all(report.ok for report in reports):
        ctx.exit(1)
