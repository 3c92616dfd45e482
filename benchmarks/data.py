"""Measure conversion to LMDB, and reading it through fairchem's loader, without and with edges.

    python -m benchmarks.data --data PATH

PATH: files or a folder as ``dens data convert`` takes them; random slabs by default.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase.build import fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.convert.frames import convert
from dens.data.convert.labels import LabelRules
from dens.data.units import parse_units
from dens.graphs.radius import periodic_radius_graph

MADE_UP = 2000
BATCH_SIZE = 4  # structures; this and the graph as in OC20's recipes
CUTOFF, NEIGHBORS = 12.0, 20  # Å
WITH_EDGES = 200  # structures to find edges for


def make_up(path: Path) -> Path:
    """Write a trajectory of `MADE_UP` slabs of 80 atoms, about the average of OC20."""
    rng = np.random.default_rng(0)
    atoms = fcc111("Cu", (4, 4, 5), vacuum=10.0)
    atoms.pbc = True
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() > 2))
    frames = []
    for _ in range(MADE_UP):
        frame = atoms.copy()
        frame.rattle(0.1, rng=rng)
        labels = {"energy": rng.normal(), "forces": rng.normal(size=(80, 3))}
        frame.calc = SinglePointCalculator(frame, **labels)
        frames.append(frame)
    ase.io.write(path, frames)
    return path


def time_conversion(
    sources: list[Path], out: Path, recipe: LabelRules, workers: int
) -> tuple[int, float]:
    """Convert, and return the number of structures and the seconds, without starting the workers.

    The start does not matter in a large conversion.
    """
    marks: list[tuple[float, int]] = []
    # of one process, the time of its core, which other programs do not change
    clock = time.process_time if workers == 1 else time.perf_counter
    convert(
        sources,
        out,
        recipe,
        workers=workers,
        progress=lambda done, total: marks.append((clock(), done)),
    )
    (start, first), (end, last) = marks[0], marks[-1]
    return last - first, end - start


def our_edges(batch) -> None:
    periodic_radius_graph(batch.pos, batch.cell, batch.natoms, CUTOFF, NEIGHBORS)


def fairchems_edges(batch) -> None:
    from fairchem.core.common.utils import radius_graph_pbc

    radius_graph_pbc(batch, CUTOFF, NEIGHBORS, True)


def time_reading(folder: Path, workers: int, edges: Callable | None = None) -> tuple[int, float]:
    """Read with fairchem's data set and collater; return the number of structures and the seconds.

    Without workers the seconds are process time. ``edges`` is called with each batch, up to
    :data:`WITH_EDGES` structures.
    """
    from fairchem.core.datasets.lmdb_dataset import LmdbDataset, data_list_collater

    dataset = LmdbDataset({"src": str(folder), "key_mapping": {"y": "energy", "force": "forces"}})
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        collate_fn=lambda samples: data_list_collater(samples, otf_graph=True),
    )
    clock = time.perf_counter if workers else time.process_time
    start = clock()
    count = 0
    for batch in loader:
        count += len(batch.natoms)
        if edges is not None:
            edges(batch)
            if count >= WITH_EDGES:
                break
    return count, clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", help="what to convert")
    parser.add_argument("--units", help="as for dens data convert")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = LabelRules(units=parse_units(arguments.units) if arguments.units else None)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        sources = arguments.data or [make_up(Path(folder, "made_up.traj"))]
        for workers in arguments.workers:
            out = Path(folder, f"out{workers}")
            count, seconds = time_conversion(sources, out, recipe, workers)
            rate = count / seconds
            print(f"convert, {workers} processes: {rate:.0f} structures/s, ", end="")
            print(f"{rate / workers:.0f} per core")
        natoms = np.load(out / "metadata.npz")["natoms"]
        size = sum(file.stat().st_size for file in out.glob("*.lmdb"))
        print(f"{len(natoms)} structures of {natoms.mean():.1f} atoms, ", end="")
        print(f"{size / len(natoms):.0f} bytes each on disk")
        for workers in (0, 1):
            count, seconds = time_reading(out, workers)
            print(f"read, {workers} loader workers: {count / seconds:.0f} structures/s")
        for name, edges in (("fairchem's", fairchems_edges), ("our", our_edges)):
            count, seconds = time_reading(out, 0, edges)
            print(f"read, with {name} edges: {count / seconds:.0f} structures/s")


if __name__ == "__main__":
    main()
