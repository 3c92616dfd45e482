"""``dens data check``: summarize a data set and report its faults.

Errors make training fail or learn nonsense; the exit status is then 1. Warnings are worth a look.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np
from ase.data import chemical_symbols, covalent_radii

from dens.data.bulk.stress_labels import Frame, StressScale, find_stress_faults
from dens.data.soundness import LABELS, MAX_NUMBER, USUAL
from dens.data.survey.check_report import EXAMPLES, LARGE_FORCE, MIN_CONTACT, Report
from dens.data.survey.consistency import ForceScale
from dens.data.survey.forces import ForceHistogram
from dens.data.survey.samples import FolderReader, Sample, draw, expected_levels, read_samples
from dens.data.survey.stats import graph_settings
from dens.graphs.images import pairs_within

MEASURED = 1000  # by default, distances are computed in so many structures
CUTOFF = 12.0  # Å, without a config
# fields that records may lack, or that are reported where they are needed
_VARYING = {"id", "pbc", "cell", "fixed", *chain(*LABELS.values())}


def check(
    dataset: Any,
    path: Any,
    *,
    cutoff: float = CUTOFF,
    measured: int | None = MEASURED,
    metadata: Mapping[str, np.ndarray] | None,
    levels: Mapping[str, str] = USUAL,
) -> Report:
    """Check every record of a data set, and the distances in a sample.

    Args:
        dataset, levels: see `dens.data.survey.samples.read_samples`.
        path: its folder, or several, for the report.
        cutoff: Å, for isolated atoms.
        measured: compute distances in so many structures, drawn at random with a fixed seed; None
            for all.
        metadata: the arrays of ``metadata.npz``, None without one.
    """
    report = Report(path, structures=len(dataset))
    chosen = set(draw(len(dataset), measured).tolist())
    report.measured = len(chosen)
    scale, stress_scale = ForceScale(), StressScale()
    without_cell, without_period, labelled = [], [], []
    for i, sample in enumerate(read_samples(dataset, levels)):
        if isinstance(sample, str):
            report.add("unreadable", [sample])
            report.natoms.append(0)
            continue
        _check_record(report, sample)
        if sample.energy is not None or sample.forces is not None:
            labelled.append(sample.where)
        if "cell" not in sample.fields:
            without_cell.append(sample.where)
        elif sample.cell is None:
            without_period.append(sample.where)
        if {fault.field for fault in sample.faults}.isdisjoint(("pos", "atomic_numbers", "cell")):
            scale.add(sample)
            _check_stress(report, sample, stress_scale)
            if i in chosen:
                _check_distances(report, sample, cutoff)
    if "cell" not in levels:  # with it, each is reported already
        report.add("no cell" if scale.periodic else "no box", without_cell)
    if scale.periodic:
        report.add("open", without_period)
    if levels.keys().isdisjoint(LABELS):
        report.add("partly labelled", labelled)
    _check_fields(report)
    _check_metadata(report, metadata)
    report.add("units", scale.findings())
    report.add("signs", scale.sign_findings())
    report.add("stress scale", stress_scale.findings())
    report.add("units", report.energies.unit_findings())
    report.add("units", report.forces.findings())
    report.add("no reference", report.energies.reference_findings())
    return report


def _check_record(report: Report, sample: Sample) -> None:
    report.natoms.append(len(sample.numbers))
    for name, kind in sample.fields.items():
        report.fields.setdefault(name, Counter())[kind] += 1
    known = (sample.numbers >= 1) & (sample.numbers <= MAX_NUMBER)
    report.elements.update(chemical_symbols[z] for z in np.unique(sample.numbers[known]))
    if any(all(name in sample.fields for name in names) for names in LABELS.values()):
        report.add("twice", [sample.where])
    for kind in dict.fromkeys(fault.kind for fault in sample.faults):
        report.add(kind, [sample.where])
    if sample.free.any() and known.all():
        report.pairs.add(sample)
    if sample.energy is not None and known.all():
        report.energies.add(sample.numbers, sample.energy)
    if sample.forces is not None and report.forces.add(sample.forces[sample.free]) > LARGE_FORCE:
        report.add("large force", [sample.where])
    parts = (sample.numbers, sample.pos.round(4), sample.cell)
    blob = b"".join(np.asarray(part).tobytes() for part in parts if part is not None)
    key = hashlib.blake2b(blob, digest_size=16).digest()
    first = report.hashes.setdefault(key, sample.where)
    if first is not sample.where:
        report.add("duplicate", [f"{sample.where} of {first}"])


def _check_stress(report: Report, sample: Sample, scale: StressScale) -> None:
    if sample.stress is None:
        return
    for kind in find_stress_faults(sample.stress, sample.pos, sample.cell):
        report.add(kind, [sample.where])
    labels = sample.cell, sample.energy, sample.forces
    if all(label is not None for label in labels):
        scale.add(sample.numbers, Frame(sample.pos, *labels, sample.stress))


def _check_distances(report: Report, sample: Sample, cutoff: float) -> None:
    radii = covalent_radii[sample.numbers]
    # short first: nearly every atom has a neighbour there, and images are few
    near = min(cutoff, max(3.0, 2 * MIN_CONTACT * radii.max()))
    pairs, squared = pairs_within(sample.pos, sample.cell, near)
    ratios = np.sqrt(squared) / (radii[pairs.target] + radii[pairs.source])
    if (ratios < MIN_CONTACT).any():
        report.add("overlap", [sample.where])
    report.energies.add_contacts(pairs.target, ratios, len(radii))
    if len(np.unique(pairs.target)) < len(sample.pos):
        pairs, _ = pairs_within(sample.pos, sample.cell, cutoff)
        if len(np.unique(pairs.target)) < len(sample.pos):
            report.add("isolated", [sample.where])


def _check_fields(report: Report) -> None:
    readable = report.structures - len(report.findings.get("unreadable", []))
    for name, kinds in sorted(report.fields.items()):
        if name in _VARYING:
            continue
        if kinds.total() < readable:
            report.add("fields", [f"{name} in {kinds.total()} of {readable}"])
        elif len(kinds) > 1 and name not in ("sid", "fid"):  # those become text
            report.add("fields", [f"{name} in {len(kinds)} shapes"])


def _check_metadata(report: Report, metadata: Mapping[str, np.ndarray] | None) -> None:
    natoms = report.natoms
    if metadata is None or "natoms" not in metadata:
        report.add("no metadata", ["there is no metadata.npz with natoms"])
    elif np.shape(given := metadata["natoms"]) != (len(natoms),):
        report.add("metadata", [f"natoms has {np.size(given)} entries for {len(natoms)} records"])
    else:
        wrong = np.flatnonzero(given != np.array(natoms))[:EXAMPLES]
        report.add("metadata", [f"record {i}: {given[i]} for {natoms[i]} atoms" for i in wrong])


def check_shared(reports: list[Report]) -> None:
    """Find structures that are in several data sets."""
    for later, report in enumerate(reports):
        for earlier in reports[:later]:
            for key in report.hashes.keys() & earlier.hashes.keys():
                where = (
                    f"{report.hashes[key]} of {earlier.hashes[key]} in {Path(earlier.name).name}"
                )
                report.add("shared", [where])


@click.command("check")
@click.argument("folder", type=str, required=False)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Training config: reader, cutoff, fields that are needed.",
)
@click.option("--cutoff", type=click.FloatRange(0, min_open=True), help="Å, for isolated atoms.")
@click.option(
    "--measured",
    type=click.IntRange(0),
    default=MEASURED,
    show_default=True,
    help="Compute distances in so many; 0: all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write the force histogram, a PNG.")
@click.pass_context
def check_command(ctx, folder, config, cutoff, measured, as_json, plot) -> None:
    """Look for faults in FOLDER, or in every split in it.

    The exit status is 1 if there are errors. With --config, records are read with the settings of
    its dataset.train (format, key_mapping, lin_ref, oc20_ref, ...), and FOLDER is whatever that
    format takes: an ASE database, a folder of them, a pattern. Without FOLDER, the training and
    validation data of the config are checked.
    """
    reader = ctx.obj(config) if config else FolderReader()
    graph = graph_settings(reader.config, cutoff)
    options = {"measured": measured or None, "cutoff": graph["cutoff"] if graph else CUTOFF}
    reports = []
    for name, source in reader.sources(folder).items():
        dataset = reader.open(source, "train" if folder else name)
        metadata = reader.metadata(dataset)
        levels = expected_levels(dataset) if reader.config is None else reader.levels
        reports.append(check(dataset, source, metadata=metadata, levels=levels, **options))
    check_shared(reports)
    if as_json:
        click.echo(json.dumps([report.to_dict() for report in reports], indent=1))
    else:
        click.echo("\n\n".join(report.text() for report in reports))
    if plot is not None and not any(report.labelled for report in reports):
        raise click.UsageError("--plot draws forces, and there are none")
    if plot is not None:
        ForceHistogram.plot({Path(report.name).name: report.forces for report in reports}, plot)
    if not all(report.ok for report in reports):
        ctx.exit(1)
