"""Small slabs with random labels, in the form that data sets give."""

from __future__ import annotations

import numpy as np
import torch
from ase.build import add_adsorbate, fcc111
from torch_geometric.data import Batch, Data


def make_structure(
    rng: np.random.Generator, size=(2, 2, 2), sid: int = 0, *, virial: bool = False, **fields
) -> Data:
    """Build a rattled Cu slab with an adsorbate and random labels; its lowest layer is fixed.

    With `virial` it also has a stress, made of its random forces.
    """
    slab = fcc111("Cu", size=size, vacuum=6.0)
    slab.pbc = True
    add_adsorbate(slab, "O", height=1.2 + 0.3 * rng.random(), position="fcc")
    slab.rattle(0.05, rng=rng)
    lowest = slab.positions[:, 2] < slab.positions[:, 2].min() + 0.5
    n = len(slab)
    data = Data(
        pos=torch.tensor(slab.positions, dtype=torch.float32),
        cell=torch.tensor(np.array(slab.cell), dtype=torch.float32)[None],
        atomic_numbers=torch.tensor(slab.numbers),
        natoms=n,
        tags=torch.where(torch.arange(n) == n - 1, 2, torch.tensor(~lowest).long()),
        fixed=torch.tensor(lowest, dtype=torch.float32),
        energy=float(rng.normal()),
        forces=torch.tensor(rng.normal(size=(n, 3)), dtype=torch.float32),
        sid=sid,
        fid=0,
        **fields,
    )
    if virial:
        product = data.forces.T @ data.pos
        data.stress = ((product + product.T) / (2 * slab.get_volume()))[None]
    return data


def make_batch(n_structures: int = 3, seed: int = 0, **fields) -> Batch:
    """Collate structures of different sizes."""
    rng = np.random.default_rng(seed)
    sizes = [(2, 2, 2), (1, 2, 3), (2, 2, 3)]
    structures = [
        make_structure(rng, sizes[i % len(sizes)], sid=i, **fields) for i in range(n_structures)
    ]
    return Batch.from_data_list(structures)
