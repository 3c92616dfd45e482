"""Make the demo data set: adsorbates on metal slabs, labelled with ASE's EMT potential.

It has the form and the variety of OC20's S2EF data at a size that trains on two CPU cores: three
facets, nine adsorbates, fixed bottom layers, frames of relaxations and of molecular dynamics. EMT
is cheap, and no description of real adsorption: the data only show that training works.

The energy ``y`` is the adsorption energy as OC20 defines it, with EMT in place of DFT:

.. math::
    E = E_{slab+adsorbate} - E_{slab} - \\sum_{i \\in adsorbate} E_{ref}(Z_i)

The clean slab is relaxed with the same fixed layers, and the references per atom are those of OC20
(arXiv:2010.09990): H from H2, N from N2, O from H2O - H2, C from CO - O. Forces are EMT's own, also
on the fixed atoms.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from dens.constraints import fixed_atoms
from dens.data.bulk.bulk_demo import make_bulk_demo
from dens.data.convert.command_line import format_option
from dens.data.equilibria.slabs import make_relaxed_demo
from dens.data.sources.emt import (
    ADSORBATES,
    FACETS,
    HELD_OUT_METAL,
    METALS,
    contacts,
    make_systems,
    reference_energy,
    run_frames,
)
from dens.data.store.by_format import writer_of
from dens.data.store.demo_summary import DemoSummary, check_least
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import atoms_to_data
from dens.files import atomic_folder

MAX_FORCE = 20.0  # eV/Å, on a free atom; frames above are dropped
MIN_CONTACT = 0.5  # pairs closer than this times the sum of their covalent radii overlap
# split: (metals, frames taken from each system), in the order that seeds them
SPLITS = {
    "train": (METALS, 20),
    "val_id": (METALS, 10),
    "val_ood": ((HELD_OUT_METAL,), 10),
}


@dataclass
class SplitSummary:
    """Contents of one split. Forces are those on free atoms, in eV/Å; energies in eV."""

    head = (
        "split    frames   md  systems  dropped  atoms  energy mean   std [eV]  "
        "free-atom force: mean norm  rms component  max norm [eV/Å]"
    )
    systems: int = 0
    md_frames: int = 0
    dropped: int = 0  # frames with overlapping atoms or a force above MAX_FORCE
    natoms: list[int] = field(default_factory=list, repr=False)
    energies: list[float] = field(default_factory=list, repr=False)
    forces: list[np.ndarray] = field(default_factory=list, repr=False)  # (n_free_atoms, 3) each

    @property
    def frames(self) -> int:
        return len(self.energies)

    def statistics(self) -> dict[str, float]:
        """Compute mean and standard deviation of the energies, and mean norm, largest norm and root
        mean square component of the forces (the latter is ``stdev`` in a config's normaliser)."""
        forces = np.concatenate(self.forces)
        norms = np.linalg.norm(forces, axis=1)
        return {
            "natoms_mean": float(np.mean(self.natoms)),
            "energy_mean": float(np.mean(self.energies)),
            "energy_std": float(np.std(self.energies)),
            "force_mean": float(norms.mean()),
            "force_rms": float(np.sqrt((forces**2).mean())),
            "force_max": float(norms.max()),
        }

    def line(self, name: str) -> str:
        """Format the counts and statistics."""
        return (
            f"{name:8s} {self.frames:6d} {self.md_frames:4d} {self.systems:8d} {self.dropped:8d} "
            "{natoms_mean:6.1f} {energy_mean:12.3f} {energy_std:10.3f} {force_mean:27.3f} "
            "{force_rms:14.3f} {force_max:9.2f}".format(**self.statistics())
        )


def make_demo_data(
    out: str | Path,
    seed: int = 0,
    *,
    train_frames: int = 2400,
    val_frames: int = 200,
    store: str = "lmdb",
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> DemoSummary[SplitSummary]:
    """Make the demo data set: ``out/train``, ``out/val_id``, ``out/val_ood``, ``out/README.txt``.

    ``val_id`` has other random starts of the metals of ``train``; ``val_ood`` has a metal that
    ``train`` does not have. `out` appears once it is complete. Equal arguments give equal bytes
    with equal versions of Python, numpy, ASE and PyTorch Geometric on one kind of machine.

    Args:
        out: the folder to make; it must not exist.
        seed: at least 0.
        train_frames: number of training frames.
        val_frames: number of frames of each validation split.
        store: ``lmdb`` or ``aselmdb``, the format to write.
        progress: called with (split, frames done, frames in all) after every system.

    Raises:
        ValueError: `out` exists or cannot be made, a negative seed, or less than one frame.
    """
    check_least(0, seed=seed)
    check_least(1, train_frames=train_frames, val_frames=val_frames)
    writer_class = writer_of(store)
    summary = DemoSummary(Path(out), seed, {name: SplitSummary() for name in SPLITS})
    with atomic_folder(out) as folder:
        for index, (name, split) in enumerate(summary.splits.items()):
            n_frames = train_frames if name == "train" else val_frames
            with writer_class(folder / name) as writer:
                for _ in _fill_split(writer, name, split, n_frames, (seed, index)):
                    progress(name, split.frames, n_frames)
        (folder / "README.txt").write_text(_readme(summary), encoding="utf-8")
    return summary


def _fill_split(
    writer: LmdbWriter, name: str, split: SplitSummary, n_frames: int, seed: tuple[int, int]
) -> Iterator[None]:
    """Add systems to the split until it has all its frames. Yields after each system."""
    metals, frames_per_system = SPLITS[name]
    systems = make_systems(metals, seed)
    while split.frames < n_frames:
        sid, atoms, metal, facet, rng = next(systems)
        split.systems += 1
        reference = reference_energy(atoms, metal, facet)
        free = ~fixed_atoms(atoms)
        for frame in run_frames(atoms, rng, frames_per_system)[: n_frames - split.frames]:
            atoms.positions[:] = frame.positions
            norms = np.linalg.norm(frame.forces[free], axis=1)
            if contacts(atoms).min() < MIN_CONTACT or norms.max() > MAX_FORCE:
                split.dropped += 1
                continue
            labels = {"energy": frame.energy - reference, "forces": frame.forces}
            data = atoms_to_data(atoms, sid=sid, fid=frame.fid, md=frame.md, **labels)
            writer.write(data, md=data.md)
            split.md_frames += data.md
            split.natoms.append(len(atoms))
            split.energies.append(data.y)
            split.forces.append(frame.forces[free])
        yield


def _readme(summary: DemoSummary[SplitSummary]) -> str:
    return f"""Demo data set of dens: adsorbates on metal slabs, in the form of OC20's S2EF data.

Labels: ASE's EMT potential. They show that training works and say nothing about real adsorption.
train, val_id: {", ".join(METALS)}; val_ood: {HELD_OUT_METAL}, which train does not have.
Facets: fcc {", ".join(FACETS)}. Adsorbates: {", ".join(ADSORBATES)}.
Energy y: adsorption energy in eV, slab relaxed, H2, N2, H2O and CO as references.
Forces: eV/Å, on all atoms; fixed marks the bottom layers, which do not move.
md: 1 for frames of Langevin dynamics, 0 for frames of relaxations; also in metadata.npz.
tags: 0 sub-surface, 1 surface, 2 adsorbate.
Dropped: frames with a force above {MAX_FORCE:g} eV/Å on a free atom or with overlapping atoms.
Seed: {summary.seed}

{summary.table()}
"""


@click.command("demo")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same data.")
@click.option(
    "--relaxed",
    is_flag=True,
    help="Relaxed structures without labels, with their starts, to learn relaxation from.",
)
@click.option("--bulk", is_flag=True, help="Bulk crystals with energies, forces and stress.")
@format_option
def demo_command(out: Path, seed: int, relaxed: bool, bulk: bool, store: str) -> None:
    """Make the data of the demo in the folder OUT."""
    if relaxed and bulk:
        raise click.UsageError("--relaxed and --bulk are two kinds of data: give one")
    if relaxed and store != "lmdb":
        raise click.UsageError(f"--relaxed is for fairchem-core 1.10: --format lmdb, got {store}")
    what = "systems" if relaxed else "frames"

    def show(split: str, done: int, total: int) -> None:
        click.echo(f"\r{split}: {done} of {total} {what}", nl=done >= total, err=True)

    shown = {"progress": show} if sys.stderr.isatty() else {}  # else it would flood a log
    chosen = {"store": store} if store != "lmdb" else {}
    make = make_relaxed_demo if relaxed else make_bulk_demo if bulk else make_demo_data
    click.echo(make(out, seed, **chosen, **shown).table())
