"""The demo data set: adsorbates on metal slabs, labelled with ASE's EMT potential.

It has the form and the variety of OC20's S2EF data at a size that trains on two CPU cores: three
facets, nine adsorbates, fixed bottom layers, frames of relaxations and of molecular dynamics. EMT
is cheap, and no description of real adsorption: the data show that training works, nothing else.

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
from functools import cache
from itertools import product
from pathlib import Path

import click
import numpy as np
from ase import Atoms, units
from ase.build import fcc100, fcc110, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.optimize import FIRE

from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import atoms_to_data, fixed_atoms
from dens.files import atomic_folder

METALS = ("Ni", "Cu", "Pd", "Pt", "Au", "Al")
HELD_OUT_METAL = "Ag"
# facet: (builder, size); the bottom layers are fixed, the two upper ones free
FACETS = {
    "111": (fcc111, (2, 3, 3)),
    "100": (fcc100, (2, 3, 3)),
    "110": (fcc110, (2, 2, 4)),
}
# adsorbate: EMT's bond length, Å (None for a single atom)
ADSORBATES = {
    "H": None,
    "C": None,
    "N": None,
    "O": None,
    "OH": 1.03,
    "CH": 1.07,
    "NH": 1.06,
    "CO": 1.06,
    "NO": 1.06,
}
FREE_LAYERS = 2
VACUUM = 6.0  # Å, on either side of the slab

MAX_FORCE = 20.0  # eV/Å, on a free atom; frames above are dropped
MIN_CONTACT = 0.5  # pairs closer than this times the sum of their covalent radii overlap
START_CONTACT = 0.9  # the same for a start, between adsorbate and slab

RELAX_STEPS = 30
RELAX_FMAX = 0.05  # eV/Å
MD_STEPS = 30
MD_TIMESTEP = 2.0 * units.fs
MD_FRICTION = 0.02 / units.fs
MD_TEMPERATURES = (300.0, 1000.0)  # K

# split: (metals, frames taken from each system), in the order that seeds them
SPLITS = {
    "train": (METALS, 20),
    "val_id": (METALS, 10),
    "val_ood": ((HELD_OUT_METAL,), 10),
}


@dataclass
class SplitSummary:
    """What one split holds. Forces are those on free atoms, in eV/Å; energies in eV."""

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
        """Mean and standard deviation of the energies, and the forces' mean and largest norm and
        root mean square component (the last is the ``stdev`` a config's normaliser takes)."""
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


@dataclass(frozen=True)
class DemoSummary:
    """What `make_demo_data` made: the folder, the seed, and the splits by name."""

    path: Path
    seed: int
    splits: dict[str, SplitSummary]

    def table(self) -> str:
        """The counts and statistics of the splits, one line each."""
        lines = [
            "split    frames   md  systems  dropped  atoms  energy mean   std [eV]  "
            "free-atom force: mean norm  rms component  max norm [eV/Å]"
        ]
        for name, split in self.splits.items():
            s = split.statistics()
            lines.append(
                f"{name:8s} {split.frames:6d} {split.md_frames:4d} {split.systems:8d} "
                f"{split.dropped:8d} {s['natoms_mean']:6.1f} {s['energy_mean']:12.3f} "
                f"{s['energy_std']:10.3f} {s['force_mean']:27.3f} {s['force_rms']:14.3f} "
                f"{s['force_max']:9.2f}"
            )
        return "\n".join(lines)


def make_demo_data(
    out: str | Path,
    seed: int = 0,
    *,
    train_frames: int = 2400,
    val_frames: int = 200,
    progress: Callable[[str, int, int], None] | None = None,
) -> DemoSummary:
    """Make the demo data set: ``out/train``, ``out/val_id``, ``out/val_ood``, ``out/README.txt``.

    ``val_id`` has other random starts of the metals of ``train``; ``val_ood`` has a metal that
    ``train`` does not have. `out` appears as a whole, once everything in it is complete. The same
    arguments give the same bytes with the same versions of Python, numpy, ASE and PyTorch Geometric
    on the same kind of machine.

    Args:
        out: the folder to make; it must not exist.
        seed: at least 0.
        train_frames: number of training frames.
        val_frames: number of frames of each validation split.
        progress: called with (split, frames done, frames in all) after every system.

    Raises:
        ValueError: `out` exists or cannot be made, a negative seed, or less than one frame.
    """
    for name, value, least in (
        ("seed", seed, 0),
        ("train_frames", train_frames, 1),
        ("val_frames", val_frames, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    summary = DemoSummary(Path(out), seed, {name: SplitSummary() for name in SPLITS})
    with atomic_folder(out) as folder:
        for index, (name, split) in enumerate(summary.splits.items()):
            n_frames = train_frames if name == "train" else val_frames
            with LmdbWriter(folder / name) as writer:
                for _ in _fill_split(writer, name, split, n_frames, (seed, index)):
                    if progress is not None:
                        progress(name, split.frames, n_frames)
        (folder / "README.txt").write_text(_readme(summary), encoding="utf-8")
    return summary


def _fill_split(
    writer: LmdbWriter, name: str, split: SplitSummary, n_frames: int, seed: tuple[int, int]
) -> Iterator[None]:
    """Add systems to the split until it has its frames. Yields after each one."""
    metals, frames_per_system = SPLITS[name]
    kinds = list(product(metals, FACETS, ADSORBATES))
    np.random.default_rng(seed).shuffle(kinds)
    while split.frames < n_frames:
        sid = seed[1] * 1_000_000 + split.systems
        metal, facet, adsorbate = kinds[split.systems % len(kinds)]
        split.systems += 1
        # From 1 on: numpy takes (seed, index) and (seed, index, 0) for the same seed.
        rng = np.random.default_rng((*seed, split.systems))
        atoms = _start(metal, facet, adsorbate, rng)
        reference = _slab(metal, facet)[1] + sum(
            _atom_references()[symbol] for symbol in atoms.symbols[atoms.get_tags() == 2]
        )
        free = ~fixed_atoms(atoms)
        for frame in _frames(atoms, rng, frames_per_system)[: n_frames - split.frames]:
            atoms.positions[:] = frame.positions
            if _is_bad(atoms, frame.forces[free]):
                split.dropped += 1
                continue
            energy = frame.energy - reference
            data = atoms_to_data(
                atoms, sid=sid, fid=frame.fid, energy=energy, forces=frame.forces, md=frame.md
            )
            writer.write(data, md=data.md)
            split.md_frames += data.md
            split.natoms.append(len(atoms))
            split.energies.append(energy)
            split.forces.append(frame.forces[free])
        yield


@dataclass(frozen=True)
class _Frame:
    fid: int
    md: bool
    positions: np.ndarray  # (n_atoms, 3), Å
    energy: float  # eV
    forces: np.ndarray  # (n_atoms, 3), eV/Å, constraints not applied


def _frames(atoms: Atoms, rng: np.random.Generator, count: int) -> list[_Frame]:
    """`count` frames of a relaxation and of the molecular dynamics that goes on from its end, half
    of them each, evenly spaced in steps."""
    relaxation = [_snapshot(atoms, fid, False) for fid, _ in enumerate(_relax(atoms, RELAX_STEPS))]
    start = len(relaxation)
    temperature = rng.uniform(*MD_TEMPERATURES)
    dynamics = [
        _snapshot(atoms, start + step, True)
        for step, _ in enumerate(_langevin(atoms, temperature, rng))
    ]
    return [*_spread(relaxation, count // 2), *_spread(dynamics, count - count // 2)]


def _snapshot(atoms: Atoms, fid: int, md: bool) -> _Frame:
    """The structure with the labels just computed for it (asking `atoms` for them again makes ASE
    compare it with the calculator's copy, which costs as much as EMT on a few atoms)."""
    results = atoms.calc.results
    return _Frame(fid, md, atoms.positions.copy(), results["energy"], results["forces"].copy())


def _spread(frames: list[_Frame], count: int) -> list[_Frame]:
    """`count` frames, the first and the last among them, or all where there are no more."""
    picks = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return [frames[i] for i in picks]


def _relax(atoms: Atoms, steps: int) -> Iterator[bool]:
    """Relax in place; yields at the start and after every step. (FIRE needs no linear algebra, so
    that the numbers do not depend on the number of threads.)"""
    return FIRE(atoms, logfile=None).irun(fmax=RELAX_FMAX, steps=steps)


def _langevin(atoms: Atoms, temperature: float, rng: np.random.Generator) -> Iterator[None]:
    """Langevin dynamics of the free atoms in place; yields after every step.

    The BAOAB scheme of Leimkuhler and Matthews, doi:10.1093/amrx/abs010. ASE's own has changed its
    arguments, and with them the trajectory, from version to version.
    """
    free = ~fixed_atoms(atoms)
    mass = atoms.get_masses()[free, None]
    thermal = np.sqrt(units.kB * temperature / mass)
    decay = np.exp(-MD_FRICTION * MD_TIMESTEP)
    velocity = thermal * rng.normal(size=(free.sum(), 3))
    force = atoms.get_forces()[free]
    for _ in range(MD_STEPS):
        velocity += 0.5 * MD_TIMESTEP * force / mass
        atoms.positions[free] += 0.5 * MD_TIMESTEP * velocity
        velocity = decay * velocity + np.sqrt(1 - decay**2) * thermal * rng.normal(
            size=velocity.shape
        )
        atoms.positions[free] += 0.5 * MD_TIMESTEP * velocity
        force = atoms.get_forces()[free]
        velocity += 0.5 * MD_TIMESTEP * force / mass
        yield


def _start(metal: str, facet: str, adsorbate: str, rng: np.random.Generator) -> Atoms:
    """A rattled slab with the adsorbate somewhere above it, at a random height and orientation."""
    slab = _slab(metal, facet)[0].copy()
    free = ~fixed_atoms(slab)
    slab.positions[free] += rng.normal(scale=rng.uniform(0.02, 0.15), size=(free.sum(), 3))
    bond = ADSORBATES[adsorbate]
    while True:
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        added = Atoms(adsorbate, [[0, 0, 0]] if bond is None else [[0, 0, 0], bond * axis])
        added.set_tags(2)
        added.positions[:, 2] += slab.positions[:, 2].max() - added.positions[:, 2].min()
        added.positions += rng.uniform(size=2) @ slab.cell.array[:2]
        added.positions[:, 2] += rng.uniform(1.0, 2.0)
        atoms = slab + added
        if _contacts(atoms)[len(slab) :, : len(slab)].min() > START_CONTACT:
            break
    atoms.calc = EMT()
    return atoms


def _is_bad(atoms: Atoms, free_forces: np.ndarray) -> bool:
    overlap = _contacts(atoms).min() < MIN_CONTACT
    return overlap or np.linalg.norm(free_forces, axis=1).max() > MAX_FORCE


def _contacts(atoms: Atoms) -> np.ndarray:
    """(n_atoms, n_atoms): distances over the sums of covalent radii; infinite on the diagonal."""
    radii = covalent_radii[atoms.numbers]
    contacts = atoms.get_all_distances(mic=True) / (radii[:, None] + radii)
    np.fill_diagonal(contacts, np.inf)
    return contacts


@cache
def _slab(metal: str, facet: str) -> tuple[Atoms, float]:
    """The relaxed clean slab, tagged and constrained as OC20 does it, and its energy in eV."""
    build, size = FACETS[facet]
    slab = build(metal, size, vacuum=VACUUM)
    slab.pbc = True
    layer = slab.get_tags()  # ASE counts layers from 1 at the top
    slab.set_tags(np.where(layer == 1, 1, 0))
    slab.set_constraint(FixAtoms(mask=layer > FREE_LAYERS))
    return slab, _relaxed_energy(slab)


@cache
def _atom_references() -> dict[str, float]:
    """The energy of each adsorbate element in eV, from relaxed molecules, as in OC20."""
    h2, n2, h2o, co = (_relaxed_energy(molecule(name)) for name in ("H2", "N2", "H2O", "CO"))
    oxygen = h2o - h2
    return {"H": h2 / 2, "N": n2 / 2, "O": oxygen, "C": co - oxygen}


def _relaxed_energy(atoms: Atoms) -> float:
    atoms.calc = EMT()
    for _ in _relax(atoms, 500):
        pass
    return float(atoms.get_potential_energy())


def _readme(summary: DemoSummary) -> str:
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
def demo_command(out: Path, seed: int) -> None:
    """Make the data of the demo in the folder OUT."""

    def show(split: str, done: int, total: int) -> None:
        click.echo(f"\r{split}: {done} of {total} frames", nl=done >= total, err=True)

    progress = show if sys.stderr.isatty() else None
    click.echo(make_demo_data(out, seed, progress=progress).table())
