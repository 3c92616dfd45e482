"""Equilibria of the demo data: adsorbates on metal slabs, relaxed with ASE's EMT potential.

The systems and starts are those of the demo data with the same seed, and further ones of their
kind. A record has no labels, but the start of its relaxation: what MoreRed is trained on, and what
relaxation is measured with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from dens.constraints import fixed_atoms
from dens.data.sources.emt import (
    EQUILIBRIUM_FMAX,
    EQUILIBRIUM_STEPS,
    HELD_OUT_METAL,
    METALS,
    make_systems,
    relax_to_equilibrium,
)
from dens.data.store.demo_summary import DemoSummary, check_least
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import add_start, atoms_to_data
from dens.files import atomic_folder

# in the order that seeds them
SPLITS = {"train": METALS, "val_id": METALS, "val_ood": (HELD_OUT_METAL,)}
SYSTEMS = {"train": 324, "val_id": 20, "val_ood": 20}  # of train, two of each kind


@dataclass
class RelaxedSplit:
    """Outcome of the relaxations of a split."""

    head = "split    relaxed  dropped  moved: median   max [Å]"
    dropped: int = 0  # not converged
    moved: list[float] = field(default_factory=list)  # Å | root mean square over free atoms

    def line(self, name: str) -> str:
        """Format the counts, and how far relaxations went."""
        moved = self.moved or [float("nan")]
        return (
            f"{name:8s} {len(self.moved):7d} {self.dropped:8d} {np.median(moved):14.3f} "
            f"{max(moved):9.3f}"
        )


def make_relaxed_demo(
    out: str | Path,
    seed: int = 0,
    *,
    systems: Mapping[str, int] = SYSTEMS,
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> DemoSummary[RelaxedSplit]:
    """Make the equilibria of the demo: ``out/train``, ``out/val_id``, ``out/val_ood``.

    `out` appears once it is complete, with ``README.txt``.

    Args:
        out: the folder to make; it must not exist.
        seed: at least 0; of the demo data.
        systems: number of relaxations in each split; those that do not converge are dropped.
        progress: called with (split, systems done, systems in all) after every system.

    Raises:
        ValueError: `out` exists or cannot be made, or a negative seed.
    """
    check_least(0, seed=seed)
    summary = DemoSummary(Path(out), seed, {name: RelaxedSplit() for name in SPLITS})
    with atomic_folder(out) as folder:
        for index, (name, split) in enumerate(summary.splits.items()):
            with LmdbWriter(folder / name) as writer:
                for done in _fill(writer, split, name, systems[name], (seed, index)):
                    progress(name, done, systems[name])
        (folder / "README.txt").write_text(_readme(summary), encoding="utf-8")
    return summary


def _fill(
    writer: LmdbWriter, split: RelaxedSplit, name: str, total: int, seed: tuple[int, int]
) -> Iterator[int]:
    """Relax the systems of a split; yields the number of systems done after each."""
    for done, system in enumerate(islice(make_systems(SPLITS[name], seed), total), start=1):
        atoms, start = system.atoms, system.atoms.positions.copy()
        if relax_to_equilibrium(atoms):
            data = atoms_to_data(atoms, sid=system.sid, fid=0, labels=False)
            add_start(data, start)
            writer.write(data)
            squared = np.square(atoms.positions - start)[~fixed_atoms(atoms)].sum(1)
            split.moved.append(float(np.sqrt(squared.mean())))
        else:
            split.dropped += 1
        yield done


def _readme(summary: DemoSummary[RelaxedSplit]) -> str:
    return f"""Equilibria of the demo data of dens: adsorbates on metal slabs, without labels.

Relaxed with ASE's EMT potential to {EQUILIBRIUM_FMAX:g} eV/Å, which says nothing about real
adsorption. train, val_id: {", ".join(METALS)}; val_ood: {HELD_OUT_METAL}.
Dropped: relaxations that were not at their end after {EQUILIBRIUM_STEPS} steps.
pos_start: Å, the start of the relaxation, not wrapped into the cell; sid: as in the demo data.
fixed marks the bottom layers, which do not move.
moved: root mean square distance of free atoms between start and end.
Seed: {summary.seed}

{summary.table()}
"""
