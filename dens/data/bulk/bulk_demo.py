"""Make the demo data of bulk crystals, with energies, forces and stress of ASE's EMT potential."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dens.data.bulk.crystals import LATTICE, make_crystals, run_frames
from dens.data.store.by_format import writer_of
from dens.data.store.demo_summary import DemoSummary, check_least
from dens.data.store.records import add_stress, atoms_to_data
from dens.files import atomic_folder

FRAMES_PER_CRYSTAL = 10
MAX_FORCE = 20.0  # eV/Å; frames above are dropped
SPLITS = ("train", "val")


@dataclass
class BulkSplit:
    """Contents of a split: labels of its frames, and the number of crystals and dropped frames."""

    head = (
        "split    frames  crystals  dropped  atoms  energy mean   std [eV]  "
        "force rms [eV/Å]  stress rms [eV/Å^3]"
    )
    crystals: int = 0
    dropped: int = 0
    natoms: list[int] = field(default_factory=list, repr=False)
    energies: list[float] = field(default_factory=list, repr=False)  # eV
    forces: list[np.ndarray] = field(default_factory=list, repr=False)  # eV/Å
    stresses: list[np.ndarray] = field(default_factory=list, repr=False)  # eV/Å^3

    def line(self, name: str) -> str:
        """Format the counts and statistics."""
        forces = np.concatenate(self.forces)
        return (
            f"{name:8s} {len(self.energies):6d} {self.crystals:9d} {self.dropped:8d} "
            f"{np.mean(self.natoms):6.1f} {np.mean(self.energies):12.3f} "
            f"{np.std(self.energies):10.3f} {np.sqrt(np.mean(forces**2)):18.3f} "
            f"{np.sqrt(np.mean(np.square(self.stresses))):19.4f}"
        )


def make_bulk_demo(
    out: str | Path,
    seed: int = 0,
    *,
    train_frames: int = 1200,
    val_frames: int = 120,
    store: str = "lmdb",
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> DemoSummary[BulkSplit]:
    """Make ``out/train`` and ``out/val`` of other crystals, and ``out/README.txt``.

    The arguments are those of :func:`dens.data.demo.make_demo_data`.

    Raises:
        ValueError: `out` exists or cannot be made, a negative seed, or less than one frame.
    """
    check_least(0, seed=seed)
    check_least(1, train_frames=train_frames, val_frames=val_frames)
    summary = DemoSummary(Path(out), seed, {name: BulkSplit() for name in SPLITS})
    sizes = dict(zip(SPLITS, (train_frames, val_frames), strict=True))
    with atomic_folder(out) as folder:
        for index, (name, split) in enumerate(summary.splits.items()):
            crystals = make_crystals((seed, index))
            with writer_of(store)(folder / name) as writer:
                while len(split.energies) < sizes[name]:
                    _add_crystal(writer, split, next(crystals), sizes[name])
                    progress(name, len(split.energies), sizes[name])
        (folder / "README.txt").write_text(_readme(summary), encoding="utf-8")
    return summary


def _add_crystal(writer, split: BulkSplit, crystal, size: int) -> None:
    split.crystals += 1
    frames = run_frames(crystal, FRAMES_PER_CRYSTAL)
    for frame in frames[: size - len(split.energies)]:
        if np.linalg.norm(frame.forces, axis=1).max() > MAX_FORCE:
            split.dropped += 1
            continue
        labels = {"energy": frame.energy, "forces": frame.forces}
        data = atoms_to_data(frame.atoms, sid=crystal.sid, fid=frame.fid, **labels)
        add_stress(data, frame.stress)
        writer.write(data)
        split.natoms.append(len(frame.atoms))
        split.energies.append(frame.energy)
        split.forces.append(frame.forces)
        split.stresses.append(frame.stress)


def _readme(summary: DemoSummary[BulkSplit]) -> str:
    return f"""Demo data set of dens: bulk crystals of {", ".join(LATTICE)} and their alloys.

Labels: ASE's EMT potential. They show that training works and say nothing about real crystals.
Crystals: face-centred cubic, of one metal or two, 4 or 8 atoms; val has other crystals than train.
Frames: half strained and rattled at random, half steps of a relaxation of positions and cell.
Energy y: eV, of EMT, whose zero are the pure metals. Forces: eV/Å.
Stress: eV/Å^3, with ASE's sign: positive where the cell would contract; (1, 3, 3), symmetric.
Dropped: frames with a force above {MAX_FORCE:g} eV/Å.
Seed: {summary.seed}

{summary.table()}
"""
