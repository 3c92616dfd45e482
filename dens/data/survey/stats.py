"""``dens data stats``: the numbers of a data set that a config needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml

from dens.data.survey.samples import Sample, dataset_settings, draw, find_splits, read_samples
from dens.graphs.pairs import count_neighbors

MEASURED = 1000  # structures whose neighbours are counted, by default


@dataclass
class Graph:
    """How a model connects atoms: ``cutoff`` in Å, ``max_neighbors`` of each atom (None: all)."""

    cutoff: float
    max_neighbors: int | None = None
    strict: bool = True

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Graph:
        """The graph of a training config's model.

        Raises:
            ValueError: it has no max_radius.
        """
        model = config.get("model") or {}
        settings = model.get("backbone", model)
        if "max_radius" not in settings:
            raise ValueError("the config has no model.backbone.max_radius: give --cutoff")
        strict = settings.get("enforce_max_neighbors_strictly", True)
        return cls(settings["max_radius"], settings.get("max_neighbors"), strict)


class Moments:
    """Mean, standard deviation, root mean square and mean absolute value of numbers that come in
    portions."""

    def __init__(self) -> None:
        # count, mean, sum of squares about it, mean absolute value
        self._portions: list[tuple[int, float, float, float]] = []

    def add(self, values: np.ndarray) -> None:
        """Take in more numbers, in any shape."""
        if np.size(values):
            mean = float(np.mean(values))
            squares = float(np.square(np.asarray(values) - mean).sum())
            absolute = float(np.abs(values).mean())
            self._portions.append((np.size(values), mean, squares, absolute))

    def result(self) -> dict[str, float]:
        """``mean``, ``std`` (over all numbers, not n - 1), ``rms``, and ``mean_abs``: the mean
        absolute error of a model that predicts zeros."""
        count, means, squares, absolute = map(np.array, zip(*self._portions, strict=True))
        mean = float(np.average(means, weights=count))
        # about the common mean: energies of -20,000 eV leave E[x^2] - E[x]^2 no digits
        variance = float((squares + count * (means - mean) ** 2).sum() / count.sum())
        rms = (variance + mean**2) ** 0.5
        mean_abs = float(np.average(absolute, weights=count))
        return {"mean": mean, "std": variance**0.5, "rms": rms, "mean_abs": mean_abs}


@dataclass(frozen=True)
class Stats:
    """Of one data set: ``energy`` (eV) and ``forces`` (components on free atoms, eV/Å) as `Moments`
    give them, the largest force on a free atom (eV/Å), and averages of the number of atoms per
    structure and of neighbours per atom (None where no cutoff is known)."""

    structures: int
    energy: dict[str, float]
    forces: dict[str, float]
    force_max: float
    avg_num_nodes: float
    avg_degree: float | None

    def snippet(self, source: str, graph: Graph | None, like_energy: bool) -> str:
        """YAML for a config's ``includes``.

        Args:
            source: the data, for its first line.
            graph: what `avg_degree` was counted with.
            like_energy: divide forces by the standard deviation of the energy, as OC20's and MD17's
                recipes do, rather than by their own root mean square.
        """
        scale = self.energy["std"] if like_energy else self.forces["rms"]
        normalizer = {
            "energy": {"mean": self.energy["mean"], "stdev": self.energy["std"]},
            "forces": {"mean": 0.0, "stdev": scale},
        }
        config: dict = {"dataset": {"train": {"transforms": {"normalizer": normalizer}}}}
        backbone = {"avg_num_nodes": self.avg_num_nodes}
        if graph:
            backbone["avg_degree"] = self.avg_degree
        config["model"] = {"backbone": backbone}
        lines = [f"# {source}: {self.structures} structures; forces on free atoms"]
        if graph:
            limit = f", at most {graph.max_neighbors} of each atom" if graph.max_neighbors else ""
            lines.append(f"# neighbours within {graph.cutoff} Å{limit}")
        return "\n".join([*lines, yaml.safe_dump(config, sort_keys=False)])


def measure(dataset: Any, graph: Graph | None = None, measured: int | None = MEASURED) -> Stats:
    """Statistics of a data set.

    Args:
        dataset: from `dens.fairchem1.data.datasets.open_dataset`.
        graph: to count neighbours; None leaves them out.
        measured: for how many structures, drawn at random with a fixed seed; None for all.

    Raises:
        ValueError: a record that cannot be read or has no labels, or labels that are not finite.
    """
    energy, forces = Moments(), Moments()
    largest, natoms = 0.0, 0
    counted = set(draw(len(dataset), measured).tolist()) if graph else set()
    degrees: list[np.ndarray] = []
    for i, sample in enumerate(read_samples(dataset)):
        _check(sample)
        natoms += len(sample.numbers)
        energy.add(sample.energy)
        free = sample.forces[sample.free]
        forces.add(free)
        largest = max(largest, float(np.linalg.norm(free, axis=1).max(initial=0)))
        if i in counted:
            degrees.append(
                count_neighbors(
                    sample.pos, sample.cell, graph.cutoff, graph.max_neighbors, strict=graph.strict
                )
            )
    return Stats(
        structures=len(dataset),
        energy=energy.result(),
        forces=forces.result(),
        force_max=largest,
        avg_num_nodes=natoms / len(dataset),
        avg_degree=float(np.concatenate(degrees).mean()) if degrees else None,
    )


def _check(sample: Sample | str) -> None:
    if isinstance(sample, str):
        raise ValueError(f"{sample}; dens data check tells more")
    if sample.energy is None or sample.forces is None:
        raise ValueError(f"{sample.where}: expected energy and forces; dens data check tells more")
    if not (np.isfinite(sample.energy) and np.isfinite(sample.forces).all()):
        raise ValueError(f"{sample.where}: labels must be finite; dens data check tells more")


def graph_from(
    config: Mapping[str, Any] | None, cutoff: float | None, max_neighbors: int | None
) -> Graph | None:
    """The graph that the options of a command describe: a config's model, or a cutoff.

    Raises:
        ValueError: a limit without a cutoff; see `Graph.of_config`.
    """
    if cutoff is not None:
        return Graph(cutoff, max_neighbors)
    if max_neighbors is not None:
        raise ValueError("--max-neighbors needs --cutoff")
    return None if config is None else Graph.of_config(config)


@click.command("stats")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--config", type=click.Path(path_type=Path), help="Training config: reader, cutoff.")
@click.option("--cutoff", type=click.FloatRange(0, min_open=True), help="Å, instead of a config's.")
@click.option("--max-neighbors", type=click.IntRange(1), help="Of each atom, with --cutoff.")
@click.option(
    "--measured", default=MEASURED, show_default=True, help="Count neighbours for so many."
)
@click.option("--forces-like-energy", is_flag=True, help="One scale for both, as OC20 and MD17.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the YAML to this file.")
def stats_command(folder, config, cutoff, max_neighbors, measured, forces_like_energy, out) -> None:
    """Print the statistics of the LMDB FOLDER as YAML that a config can include.

    Where FOLDER holds splits, its train is taken. Normalisers belong to the training set.
    """
    from dens.fairchem1.config.read import read_config
    from dens.fairchem1.data.datasets import open_dataset

    splits = find_splits(folder)
    if len(splits) > 1 and "train" not in splits:
        raise ValueError(f"{folder} holds {', '.join(splits)}, but no train: name one of them")
    path = splits.get("train") or next(iter(splits.values()))
    if out is not None and out.exists():
        raise ValueError(f"{out} already exists")
    loaded = read_config(config) if config else None
    graph = graph_from(loaded, cutoff, max_neighbors)
    stats = measure(open_dataset(path, dataset_settings(loaded)), graph, measured)
    click.echo(_table(stats), err=True)
    snippet = stats.snippet(str(path), graph, forces_like_energy)
    if out is None:
        click.echo(snippet, nl=False)
    else:
        out.write_text(snippet, encoding="utf-8")


def _table(stats: Stats) -> str:
    lines = [f"{stats.structures} structures, {stats.avg_num_nodes:.2f} atoms each on average"]
    for name, unit in (("energy", "eV"), ("forces", "eV/Å")):
        values = "  ".join(f"{key} {v:.6g}" for key, v in asdict(stats)[name].items())
        lines.append(f"{name} [{unit}]: {values}")
    lines.append(f"largest force on a free atom: {stats.force_max:.6g} eV/Å")
    if stats.avg_degree is not None:
        lines.append(f"neighbours of an atom: {stats.avg_degree:.4f}")
    return "\n".join(lines)
