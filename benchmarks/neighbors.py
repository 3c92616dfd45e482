"""Compare the speed of our periodic neighbour search with fairchem's, on equal edges.

    OMP_NUM_THREADS=1 python -m benchmarks.neighbors

Structures per second of a process on one core. The two take turns in one process, and the ratio is
the median over rounds; the edges are compared in every round.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.constraints import FixAtoms
from fairchem.core.common.utils import radius_graph_pbc
from torch_geometric.data import Batch, Data

from benchmarks.arms import make_batch
from benchmarks.measure import commit, hardware, summary
from dens.graphs.radius import periodic_radius_graph

BATCH_SIZE = 4


def crystal(rng: np.random.Generator) -> Atoms:
    """Make a rattled crystal of 8 atoms: many images within the cutoff."""
    atoms = bulk(rng.choice(["Cu", "Pt", "Al"])).repeat(2)
    atoms.rattle(0.05, rng=rng)
    return atoms


def half_ideal_slab(rng: np.random.Generator) -> Atoms:
    """Make a slab of 72 atoms whose lower half is on ideal sites: many equal distances."""
    atoms = fcc111(rng.choice(["Cu", "Pt", "Pd"]), size=(3, 4, 6), vacuum=8.0)
    atoms.pbc = True
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() > 3))
    atoms.rattle(0.05, rng=rng)
    return atoms


def batch_of(make: Callable, count: int, seed: int) -> Batch:
    """Make a batch of structures with ``make``."""
    rng = np.random.default_rng(seed)
    return Batch.from_data_list([_data(make(rng)) for _ in range(count)])


def _data(atoms: Atoms) -> Data:
    return Data(
        pos=torch.tensor(atoms.positions, dtype=torch.float32),
        cell=torch.tensor(atoms.cell.array, dtype=torch.float32)[None],
        natoms=len(atoms),
    )


BATCHES = {
    "slabs of 73-77 atoms": make_batch,
    "slabs of 72 atoms, half of them on ideal sites": partial(batch_of, half_ideal_slab),
    "crystals of 8 atoms": partial(batch_of, crystal),
}


def seconds(function, *args, repeats: int, **kwargs) -> tuple[float, tuple]:
    """Return process seconds per call, and the result of the last call."""
    start = time.process_time()
    for _ in range(repeats):
        found = function(*args, **kwargs)
    return (time.process_time() - start) / repeats, found


def measure(make, cutoff: float, limit: int, rounds: int) -> dict:
    """Measure structures per second of both searches, and the ratio of their times."""
    theirs, ours = [], []
    for turn in range(rounds + 1):
        batch = make(BATCH_SIZE, turn)
        args = batch.pos, batch.cell, batch.natoms, cutoff, limit
        slow, expected = seconds(radius_graph_pbc, batch, cutoff, limit, True, repeats=1)
        fast, found = seconds(periodic_radius_graph, *args, repeats=10)
        for ours_part, part in zip(found, expected[:2], strict=True):
            if not torch.equal(ours_part, part):
                raise AssertionError(f"other edges than fairchem's in round {turn}")
        if turn:  # the first one warms up
            theirs.append(slow)
            ours.append(fast)
    ratio = summary([a / b for a, b in zip(theirs, ours, strict=True)])
    return {
        "fairchem": BATCH_SIZE / np.median(theirs),
        "ours": BATCH_SIZE / np.median(ours),
        "ratio": ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cutoff", type=float, default=12.0, help="Å")
    parser.add_argument("--neighbors", type=int, default=20, help="at most, of each atom")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{hardware('cpu')}, torch {torch.__version__}, commit {commit()}")
    print(f"{args.cutoff} Å, {args.neighbors} neighbours, batches of {BATCH_SIZE}")
    print("| structures | fairchem, 1/s | ours, 1/s | ratio | quartiles |\n|---|---|---|---|---|")
    for name, make in BATCHES.items():
        found = measure(make, args.cutoff, args.neighbors, args.rounds)
        ratio = found["ratio"]
        print(
            f"| {name} | {found['fairchem']:.3g} | {found['ours']:.3g} | {ratio['median']:.3g} "
            f"| {ratio['low']:.3g} - {ratio['high']:.3g} |"
        )


if __name__ == "__main__":
    main()
