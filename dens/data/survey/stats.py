"""``dens data stats``: compute the statistics of a data set that a config needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml
from ase.data import chemical_symbols

from dens.data.bulk.stress_labels import StressMoments
from dens.data.convert.command_line import DataCommand
from dens.data.references import References, fit_references
from dens.data.soundness import LABELS
from dens.data.survey.check_report import UNLABELLED
from dens.data.survey.displacement import Displacements
from dens.data.survey.forces import Moments
from dens.data.survey.samples import FolderReader, draw, expected_levels, read_samples
from dens.data.survey.task_stats import format_for_tasks, remarks_for_tasks
from dens.graphs.radius import count_neighbors

MEASURED = 1000  # by default, neighbours are counted in so many structures


def graph_settings(
    config: Mapping[str, Any] | None, cutoff: float | None, max_neighbors: int | None = None
) -> dict[str, Any] | None:
    """Choose the settings of `count_neighbors`: a command's cutoff, or else those of a config.

    Returns:
        ``cutoff`` (Å), ``max_neighbors`` and ``strict``; None without cutoff and config.

    Raises:
        ValueError: a limit without a cutoff, or a model without either name of it.
    """
    if cutoff is not None:
        return {"cutoff": cutoff, "max_neighbors": max_neighbors, "strict": True}
    if max_neighbors is not None:
        raise ValueError("--max-neighbors needs --cutoff")
    if config is None:
        return None
    model = config.get("model") or {}
    backbone = model.get("backbone", model)
    if not (given := backbone.get("max_radius", backbone.get("cutoff"))):
        raise ValueError("the config has no model.backbone.max_radius or cutoff: give --cutoff")
    return {
        "cutoff": given,
        "max_neighbors": backbone.get("max_neighbors"),
        "strict": backbone.get("enforce_max_neighbors_strictly", True),
    }


@dataclass(frozen=True)
class Stats:
    """Statistics of one data set.

    Attributes:
        energy: `Moments` in eV; None without labels, as the forces.
        forces: `Moments` of the components on free atoms, eV/Å.
        force_max: the largest norm on a free atom, eV/Å.
        avg_num_nodes: atoms per structure.
        avg_degree: neighbours per atom; None if no cutoff is known.
        elements: structures with each symbol.
        sizes: the smallest and the largest number of atoms.
        pairs: the line about them; empty without pairs.
        references: of the elements, if they were fitted to the energies.
        stress: `Moments` of the isotropic and the anisotropic part, eV/Å^3, by name; empty unless
            all structures have one.
    """

    structures: int
    energy: dict[str, float] | None
    forces: dict[str, float] | None
    force_max: float
    avg_num_nodes: float
    avg_degree: float | None
    elements: Mapping[str, int] = field(default_factory=dict)
    sizes: tuple[int, int] = (0, 0)
    pairs: str = ""
    references: References | None = None
    stress: Mapping[str, dict[str, float]] = field(default_factory=dict)

    def snippet(self, source: str, graph: Mapping[str, Any] | None, like_energy: bool) -> str:
        """Format the statistics as YAML for a config's ``includes``, of fairchem-core 1.10.

        Args:
            source: the data, for the first line.
            graph: the settings with which `avg_degree` was counted.
            like_energy: scale forces by the standard deviation of the energy, as OC20's and MD17's
                recipes do, instead of by their own root mean square.
        """
        normalizer = {}
        if self.energy and self._energies_differ:
            normalizer["energy"] = {"mean": self.energy["mean"], "stdev": self.energy["std"]}
        if self.forces and (scale := self._force_scale(like_energy)):
            normalizer["forces"] = {"mean": 0.0, "stdev": scale}
        for name, moments in self.stress.items():
            mean = moments["mean"] if name == "stress_isotropic" else 0.0  # else a direction
            if spread := moments["std" if mean else "rms"]:
                normalizer[name] = {"mean": mean, "stdev": spread}
        backbone = {"avg_num_nodes": self.avg_num_nodes}
        what = "forces on free atoms" if self.forces else UNLABELLED
        text = f"# {source}: {self.structures} structures; {what}\n"
        if graph:
            if self.avg_degree:
                backbone["avg_degree"] = self.avg_degree
            limit = graph["max_neighbors"]
            at_most = f", at most {limit} of each atom" if limit else ""
            text += f"# neighbours within {graph['cutoff']} Å{at_most}\n"
        config = {"model": {"backbone": backbone}}
        if normalizer:
            dataset = {"train": {"transforms": {"normalizer": normalizer}}}
            config = {"dataset": dataset, **config}
        return text + yaml.safe_dump(config, sort_keys=False)

    def problems(self, like_energy: bool) -> list[str]:
        """Describe what the YAML leaves out because a model would divide by zero.

        Args:
            like_energy: as for `snippet`.
        """
        found = []
        if self.energy and not self._energies_differ:
            same = "there is one structure" if self.structures == 1 else "all energies are equal"
            found.append(f"{same}: no spread, so the YAML has no normalizer of the energy")
        if self.forces and not self._force_scale(like_energy):
            why = "the energies have no spread" if like_energy else "no free atom has a force"
            found.append(f"{why}: the YAML has no normalizer of the forces")
        if self.avg_degree == 0:
            found.append("no atom has a neighbour within the cutoff: the YAML has no avg_degree")
        return found

    @property
    def _energies_differ(self) -> bool:
        # in single precision, which training reads
        return self.energy["std"] > np.spacing(np.float32(abs(self.energy["mean"])))

    def _force_scale(self, like_energy: bool) -> float:
        if like_energy:
            return self.energy["std"] if self._energies_differ else 0.0
        return self.forces["rms"]

    def table(self) -> str:
        """Format the statistics for a terminal."""
        low, high = self.sizes
        elements = " ".join(f"{symbol} {count}" for symbol, count in self.elements.items())
        lines = [
            f"{self.structures} structures, {self.avg_num_nodes:.2f} atoms each on average, "
            f"{low} to {high}",
            f"elements (structures with them): {elements}",
            *(self._labels() if self.energy else [UNLABELLED]),
        ]
        if self.pairs:
            lines.append(self.pairs)
        if self.avg_degree is not None:
            lines.append(f"neighbours of an atom: {self.avg_degree:.4f}")
        return "\n".join(lines)

    def _labels(self) -> Iterator[str]:
        stress = ((name, "eV/Å^3", moments) for name, moments in self.stress.items())
        usual = (("energy", "eV", self.energy), ("forces", "eV/Å", self.forces))
        for name, unit, moments in (*usual, *stress):
            values = "  ".join(f"{key} {value:.6g}" for key, value in moments.items())
            yield f"{name} [{unit}]: {values}"
        yield f"largest force on a free atom: {self.force_max:.6g} eV/Å"


def measure(
    dataset: Any,
    graph: Mapping[str, Any] | None = None,
    measured: int | None = MEASURED,
    fit: bool = False,
) -> Stats:
    """Compute the statistics of a data set.

    Args:
        dataset: see `dens.data.survey.samples.read_samples`.
        graph: from `graph_settings`, to count neighbours; None leaves them out.
        measured: count in so many structures, drawn at random with a fixed seed; None for all.
        fit: fit references of the elements to the energies.

    Raises:
        ValueError: a record cannot be read, or training could not use it; one with labels, where
            the first has none.
    """
    energy, forces, stress = Moments(), Moments(), StressMoments()
    needed = {name: level for name, level in expected_levels(dataset).items() if name in LABELS}
    largest, natoms, elements, pairs = 0.0, [], Counter(), Displacements()
    energies: list[tuple[np.ndarray, float]] = []
    counted = set(draw(len(dataset), measured).tolist()) if graph else set()
    degrees: list[np.ndarray] = []
    for i, sample in enumerate(read_samples(dataset, needed)):
        if isinstance(sample, str):
            raise ValueError(f"{sample}; dens data check tells more")
        for fault in sample.faults:
            if fault.kind != "no free atom":  # its energy counts
                raise ValueError(f"{sample.where}: {fault}; dens data check tells more")
        natoms.append(len(sample.numbers))
        elements.update(chemical_symbols[z] for z in np.unique(sample.numbers))
        pairs.add(sample)
        if needed:
            energy.add(sample.energy)
            if fit:
                energies.append((sample.numbers.astype(np.uint8), sample.energy))
            free = sample.forces[sample.free]
            forces.add(free)
            largest = max(largest, float(np.linalg.norm(free, axis=1).max(initial=0)))
            stress.add(sample.stress)
        elif sample.energy is not None or sample.forces is not None:
            raise ValueError(f"{sample.where}: it has labels, and the first record has none")
        if i in counted:
            degrees.append(count_neighbors(sample.pos, sample.cell, **graph))
    return Stats(
        structures=len(dataset),
        energy=energy.result() if needed else None,
        forces=forces.result() if needed else None,
        force_max=largest,
        avg_num_nodes=sum(natoms) / len(natoms),
        avg_degree=float(np.concatenate(degrees).mean()) if degrees else None,
        elements=dict(elements.most_common()),
        sizes=(min(natoms), max(natoms)),
        pairs=pairs.text(len(natoms)) if len(pairs) else "",
        stress=stress.result(len(dataset)),
        references=fit_references(energies, "the fit to these data") if energies else None,
    )


@click.command("stats", cls=DataCommand)
@click.argument("folder", type=str, required=False)
@click.option("--config", type=click.Path(path_type=Path), help="Training config: reader, cutoff.")
@click.option("--cutoff", type=click.FloatRange(0, min_open=True), help="Å, instead of a config's.")
@click.option("--max-neighbors", type=click.IntRange(1), help="Of each atom, with --cutoff.")
@click.option(
    "--measured",
    type=click.IntRange(0),
    default=MEASURED,
    show_default=True,
    help="Count neighbours in so many; 0: all.",
)
@click.option("--forces-like-energy", is_flag=True, help="One scale for both, as OC20 and MD17.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the YAML to this file.")
@click.pass_obj
def stats_command(
    open_config, folder, config, cutoff, max_neighbors, measured, forces_like_energy, out
) -> None:
    """Print the statistics of FOLDER as YAML that a config can include.

    If FOLDER holds splits, train is taken: normalizers belong to the training set. With --config,
    FOLDER is whatever the format of its training data takes, by default these. Of .aselmdb, the
    YAML is for fairchem-core 2: normalizer_rmsd and elem_refs, of its own configs.
    """
    if out is not None and out.exists():
        raise ValueError(f"{out} already exists")
    reader = open_config(config) if config else FolderReader()
    sources = reader.sources(folder)
    if len(sources) > 1 and "train" not in sources:
        raise ValueError(f"{folder} holds {', '.join(sources)}, but no train: name one of them")
    source = sources.get("train") or next(iter(sources.values()))
    graph = graph_settings(reader.config, cutoff, max_neighbors)
    dataset = reader.open(source)
    for_tasks = reader.is_of_fairchem2(dataset)
    if for_tasks and forces_like_energy:
        raise ValueError("--forces-like-energy is for configs of fairchem-core 1.10")
    stats = measure(dataset, graph, measured or None, fit=for_tasks)
    click.echo(stats.table(), err=True)
    name = ", ".join(map(str, source)) if isinstance(source, list) else str(source)
    if for_tasks:
        found = stats.forces["rms"] if stats.forces else 0.0, stats.references
        snippet = format_for_tasks(f"{name}: {stats.structures} structures", *found)
        problems = remarks_for_tasks(*found)
    else:
        snippet = stats.snippet(name, graph, forces_like_energy)
        problems = stats.problems(forces_like_energy)
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)
    if out is None:
        click.echo(snippet, nl=False)
    else:
        out.write_text(snippet, encoding="utf-8")
