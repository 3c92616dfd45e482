"""Data sets and configs of crystals with stress."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ase import units
from torch_geometric.data import Batch, Data

from dens.data.bulk.crystals import Labelled, label, make_crystals, run_frames, strained
from dens.data.canonical import canonical
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import add_stress, atoms_to_data
from helpers.stress_settings import decomposed


def as_record(frame: Labelled, sid: int = 0) -> Data:
    """Make the record of a labelled frame."""
    labels = {"energy": frame.energy, "forces": frame.forces}
    data = atoms_to_data(frame.atoms, sid=sid, fid=frame.fid, **labels)
    add_stress(data, frame.stress)
    return data


def some_frames(crystals: int = 2, number: int = 6, seed: int = 0) -> list[Labelled]:
    """Label frames of crystals of all kinds with EMT."""
    found = make_crystals((seed, 0))
    return [frame for _ in range(crystals) for frame in run_frames(next(found), number)]


def strains_of(atoms, number: int, seed: int = 0, size: float = 0.01) -> list[Labelled]:
    """Label random strains of a structure with EMT."""
    rng = np.random.default_rng(seed)
    strains = size * rng.normal(size=(number, 3, 3))
    return [label(strained(atoms, (e + e.T) / 2), i) for i, e in enumerate(strains)]


def write_frames(path: Path, frames: Iterable[Labelled]) -> str:
    """Write labelled frames to an LMDB folder."""
    with LmdbWriter(path) as writer:
        for i, frame in enumerate(frames):
            writer.write(as_record(frame, i))
    return str(path)


def batch_of(frames: Iterable[Labelled]) -> Batch:
    """Collate labelled frames, under the names of training, with the parts of the stress."""
    records = []
    for i, frame in enumerate(frames):
        data = canonical(as_record(frame, i))
        data.energy, data.forces = data.y, data.force
        del data.y, data.force
        records.append(decomposed(data))
    return Batch.from_data_list(records)


def as_mptrj(frame: Labelled) -> dict:
    """Write a labelled frame as MPtrj has it: pymatgen's structure, kbar with VASP's sign."""
    atoms = frame.atoms
    sites = [
        {"species": [{"element": symbol, "occu": 1}], "xyz": list(xyz), "abc": [0, 0, 0]}
        for symbol, xyz in zip(atoms.symbols, atoms.positions.tolist(), strict=True)
    ]
    return {
        "structure": {"lattice": {"matrix": atoms.cell.tolist()}, "sites": sites},
        "uncorrected_total_energy": frame.energy + 1.5,
        "corrected_total_energy": frame.energy,
        "energy_per_atom": frame.energy / len(atoms),
        "force": frame.forces.tolist(),
        "stress": (-frame.stress / (0.1 * units.GPa)).tolist(),
        "magmom": None,
        "bandgap": 0.0,
    }


def write_mptrj(path: Path, frames: Iterable[Labelled]) -> None:
    """Write each frame as a material of its own, in the layout of MPtrj."""
    content = {f"mp-{i}": {f"mp-{i}-0-0": as_mptrj(frame)} for i, frame in enumerate(frames)}
    path.write_text(json.dumps(content))
