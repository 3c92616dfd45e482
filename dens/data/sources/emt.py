"""Label adsorbates on metal slabs with ASE's EMT potential: relaxations and molecular dynamics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count, product
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import fcc100, fcc110, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.optimize import FIRE

from dens.constraints import fixed_atoms

METALS = ("Ni", "Cu", "Pd", "Pt", "Au", "Al")
HELD_OUT_METAL = "Ag"
# facet: (builder, size); the bottom layers are fixed, the two upper ones free
FACETS = {"111": (fcc111, (2, 3, 3)), "100": (fcc100, (2, 3, 3)), "110": (fcc110, (2, 2, 4))}
# adsorbate: EMT's bond length, Å (None for a single atom)
ADSORBATES = {"H": None, "C": None, "N": None, "O": None}
ADSORBATES |= {"OH": 1.03, "CH": 1.07, "NH": 1.06, "CO": 1.06, "NO": 1.06}
FREE_LAYERS = 2
VACUUM = 6.0  # Å, on either side of the slab

# smallest distance of a start between adsorbate and slab, in sums of covalent radii
START_CONTACT = 0.9

RELAX_STEPS = 30
RELAX_FMAX = 0.05  # eV/Å
EQUILIBRIUM_FMAX = 0.01  # eV/Å
EQUILIBRIUM_STEPS = 1000
MD_STEPS = 30
MD_TIMESTEP = 2.0 * units.fs
MD_FRICTION = 0.02 / units.fs
MD_TEMPERATURES = (300.0, 1000.0)  # K


class Frame(NamedTuple):
    """One structure of a trajectory with its labels."""

    fid: int
    md: bool
    positions: np.ndarray  # (n_atoms, 3), Å
    energy: float  # eV
    forces: np.ndarray  # (n_atoms, 3), eV/Å, constraints not applied


class System(NamedTuple):
    """A slab with an adsorbate to start from."""

    sid: int
    atoms: Atoms  # with EMT as its calculator
    metal: str
    facet: str
    rng: np.random.Generator  # of what is done with the start


def make_systems(metals: Sequence[str], seed: tuple[int, int]) -> Iterator[System]:
    """Make the systems of a split without end, each a function of the seed and its number.

    Args:
        metals: of the slabs.
        seed: of the data, and the number of the split.
    """
    kinds = list(product(metals, FACETS, ADSORBATES))
    np.random.default_rng(seed).shuffle(kinds)
    for number in count():
        metal, facet, adsorbate = kinds[number % len(kinds)]
        # From 1 on: numpy takes (seed, index) and (seed, index, 0) as one seed.
        rng = np.random.default_rng((*seed, number + 1))
        atoms = start_structure(metal, facet, adsorbate, rng)
        yield System(seed[1] * 1_000_000 + number, atoms, metal, facet, rng)


def run_frames(atoms: Atoms, rng: np.random.Generator, number: int) -> list[Frame]:
    """Run a relaxation, and molecular dynamics from its end; take half of the frames from each,
    evenly spaced in steps."""
    relaxation = [_snapshot(atoms, fid, False) for fid, _ in enumerate(_relax(atoms, RELAX_STEPS))]
    steps = _langevin(atoms, rng.uniform(*MD_TEMPERATURES), rng)
    dynamics = [_snapshot(atoms, fid, True) for fid, _ in enumerate(steps, start=len(relaxation))]
    return [*_spread(relaxation, number // 2), *_spread(dynamics, number - number // 2)]


def _snapshot(atoms: Atoms, fid: int, md: bool) -> Frame:
    # Asking `atoms` for its labels would compare it with the calculator's copy, which costs as much
    # as EMT on a few atoms.
    results = atoms.calc.results
    return Frame(fid, md, atoms.positions.copy(), results["energy"], results["forces"].copy())


def _spread(frames: list[Frame], count: int) -> list[Frame]:
    """Pick `count` frames, the first and the last among them; all if there are no more."""
    picks = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return [frames[i] for i in picks]


def _relax(atoms: Atoms, steps: int) -> Iterator[bool]:
    """Relax in place; yields at the start and after every step."""
    # FIRE needs no linear algebra, so the numbers do not depend on the number of threads
    return FIRE(atoms, logfile=None).irun(fmax=RELAX_FMAX, steps=steps)


def relax_to_equilibrium(atoms: Atoms) -> bool:
    """Relax in place until no force exceeds `EQUILIBRIUM_FMAX`; tell whether that was reached."""
    optimizer = FIRE(atoms, logfile=None)
    return bool(optimizer.run(fmax=EQUILIBRIUM_FMAX, steps=EQUILIBRIUM_STEPS))


def _langevin(atoms: Atoms, temperature: float, rng: np.random.Generator) -> Iterator[None]:
    """Run Langevin dynamics of the free atoms in place; yields after every step.

    The BAOAB scheme of Leimkuhler and Matthews, doi:10.1093/amrx/abs010. ASE's integrator changed
    between versions, and with it the trajectory.
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
        kick = np.sqrt(1 - decay**2) * thermal * rng.normal(size=velocity.shape)
        velocity = decay * velocity + kick
        atoms.positions[free] += 0.5 * MD_TIMESTEP * velocity
        force = atoms.get_forces()[free]
        velocity += 0.5 * MD_TIMESTEP * force / mass
        yield


def start_structure(metal: str, facet: str, adsorbate: str, rng: np.random.Generator) -> Atoms:
    """Make a rattled slab with the adsorbate above it, at a random place and orientation."""
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
        if contacts(atoms)[len(slab) :, : len(slab)].min() > START_CONTACT:
            atoms.calc = EMT()
            return atoms


def contacts(atoms: Atoms) -> np.ndarray:
    """Compute distances over sums of covalent radii, (n_atoms, n_atoms); inf on the diagonal."""
    radii = covalent_radii[atoms.numbers]
    ratios = atoms.get_all_distances(mic=True) / (radii[:, None] + radii)
    np.fill_diagonal(ratios, np.inf)
    return ratios


@cache
def _slab(metal: str, facet: str) -> tuple[Atoms, float]:
    """Make the relaxed clean slab, with tags and fixed atoms as in OC20, and its energy in eV."""
    build, size = FACETS[facet]
    slab = build(metal, size, vacuum=VACUUM)
    slab.pbc = True
    layer = slab.get_tags()  # ASE counts layers from 1 at the top
    slab.set_tags(np.where(layer == 1, 1, 0))
    slab.set_constraint(FixAtoms(mask=layer > FREE_LAYERS))
    return slab, _relaxed_energy(slab)


@cache
def _atom_references() -> dict[str, float]:
    """Compute the energy of each adsorbate element in eV, from relaxed molecules, as in OC20."""
    h2, n2, h2o, co = (_relaxed_energy(molecule(name)) for name in ("H2", "N2", "H2O", "CO"))
    oxygen = h2o - h2
    return {"H": h2 / 2, "N": n2 / 2, "O": oxygen, "C": co - oxygen}


def _relaxed_energy(atoms: Atoms) -> float:
    atoms.calc = EMT()
    for _ in _relax(atoms, 500):
        pass
    return float(atoms.get_potential_energy())


def reference_energy(atoms: Atoms, metal: str, facet: str) -> float:
    """Compute the energy of the clean slab and of the adsorbate's atoms apart, in eV."""
    adsorbate = atoms.symbols[atoms.get_tags() == 2]
    return _slab(metal, facet)[1] + sum(_atom_references()[symbol] for symbol in adsorbate)
