"""Radius graphs equal loops over all pairs, and do not depend on position or orientation."""

from itertools import product

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, fcc211, molecule

from dens.graphs.radius import periodic_radius_graph, radius_graph


def by_loop(pos, batch, cutoff, max_neighbors, strict):
    """Find edges atom by atom, with the documented rule for ties."""
    edges = []
    for i in range(len(pos)):
        near = []
        for j in range(len(pos)):
            squared = ((pos[j] - pos[i]) ** 2).sum().item()
            if j != i and batch[j] == batch[i] and 1e-4 < squared <= cutoff**2:
                near.append((squared, j))
        near.sort()
        if max_neighbors is not None and len(near) > max_neighbors:
            limit = near[max_neighbors][0] + 0.01
            near = near[:max_neighbors] if strict else [n for n in near if n[0] <= limit]
        edges += [(j, i) for j in sorted(j for _, j in near)]
    return edges


def grid(n: int, spacing: float = 1.0) -> torch.Tensor:
    """Place atoms on a cubic grid, where every distance occurs many times."""
    axis = torch.arange(n, dtype=torch.float64) * spacing
    return torch.cartesian_prod(axis, axis, axis)


def structures(name: str):
    generator = torch.Generator().manual_seed(0)
    random = [torch.rand(n, 3, generator=generator, dtype=torch.float64) * 4 for n in (5, 1, 17, 2)]
    parts = {
        "random": random,
        "ties": [grid(3), random[0]],
        "single atoms": [torch.zeros(1, 3), torch.zeros(1, 3)],
        "far apart": [torch.eye(3, dtype=torch.float64) * 100],
        "no atoms": [torch.zeros(0, 3)],
        "on top of each other": [torch.cat([random[0], random[0], random[0] + 5e-3])],
    }[name]
    batch = [torch.full((len(p),), 3 * i) for i, p in enumerate(parts)]  # ids with gaps
    return torch.cat(parts), torch.cat(batch)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("max_neighbors", [None, 1, 4, 500])
@pytest.mark.parametrize(
    "name", ["random", "ties", "single atoms", "far apart", "no atoms", "on top of each other"]
)
def test_equals_the_loop_over_all_pairs(name, max_neighbors, strict):
    pos, batch = structures(name)
    expected = by_loop(pos, batch, 2.0, max_neighbors, strict)
    edges = radius_graph(pos, batch, 2.0, max_neighbors, strict=strict)
    assert edges.dtype == torch.int64
    assert list(map(tuple, edges.T.tolist())) == expected
    in_single = radius_graph(pos.float(), batch, 2.0, max_neighbors, strict=strict)
    assert torch.equal(in_single, edges)


def test_limits():
    pos, batch = structures("ties")
    strict = radius_graph(pos, batch, 2.0, 4)
    assert strict[1].bincount().max() == 4
    tolerant = radius_graph(pos, batch, 2.0, 4, strict=False)
    centre = tolerant[0][tolerant[1] == 13]  # the centre of the 3 x 3 x 3 grid: six at distance 1
    assert centre.tolist() == [4, 10, 12, 14, 16, 22]


def test_low_precision_and_gradients():
    pos, batch = structures("random")
    expected = radius_graph(pos.half(), batch, 2.0)
    # compared as numbers, not in half precision, where the squares of distances would overflow
    assert torch.equal(radius_graph(pos.half().double(), batch, 2.0), expected)
    assert not radius_graph(pos.clone().requires_grad_(), batch, 2.0).requires_grad


def test_moving_and_turning_changes_nothing():
    pos, batch = structures("random")
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    moved = pos @ turn.T + 70
    assert torch.equal(radius_graph(moved, batch, 2.0, 3), radius_graph(pos, batch, 2.0, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(3), 1.0), r"got \(2, 3\) and \(3,\)"),
        ((torch.zeros(2, 3), torch.zeros(2), 0.0), "cutoff must be > 0, got 0.0"),
        ((torch.zeros(2, 3), torch.zeros(2), 1.0, 0), "max_neighbors must be at least 1"),
        ((torch.zeros(2, 3), torch.tensor([1, 0]), 1.0), "batch must be in ascending order"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        radius_graph(*arguments)


def periodic(name: str) -> Atoms:
    rng = np.random.default_rng(0)
    if name in ("slab", "perfect slab"):
        atoms = fcc111("Pt", (2, 2, 3), vacuum=6.0)
    if name == "stepped slab":
        atoms = fcc211("Cu", (3, 1, 2), vacuum=5.0)
    if name == "molecule in a box":
        atoms = molecule("C6H6", vacuum=8.0)
    if name == "one atom":
        atoms = bulk("Cu", "fcc", 3.6)
    if name == "perfect crystal":
        atoms = bulk("NaCl", "rocksalt", 5.64).repeat((2, 1, 1))
    if name == "skewed":
        cell = [[3.0, 0, 0], [2.5, 3.0, 0], [-2.0, 1.7, 4.0]]
        atoms = Atoms("H5", rng.random((5, 3)) * 3, cell=cell)
    if name == "needle":
        atoms = Atoms("H3", rng.random((3, 3)), cell=[[2.0, 0, 0], [1.9, 0.9, 0], [0.3, 0.2, 15.0]])
    if name == "on top of each other":
        atoms = Atoms("H4", [[0, 0, 0], [0, 0, 0], [0.005, 0, 0], [1, 1, 1]], cell=[4, 4, 4])
    if name == "left-handed, far from its cell":
        atoms = Atoms(
            "H5", rng.random((5, 3)) * 20 - 30, cell=[[0, 4.0, 0], [4.0, 1.0, 0], [0, 0, 5]]
        )
    if name == "slab":
        atoms.rattle(0.1, rng=rng)
    return atoms


PERIODIC = [
    "slab",
    "perfect slab",
    "stepped slab",
    "molecule in a box",
    "one atom",
    "perfect crystal",
    "skewed",
    "needle",
    "on top of each other",
    "left-handed, far from its cell",
]


def tensors(*structures: Atoms, dtype=torch.float64):
    """Return pos, cell and natoms."""
    pos = np.concatenate([atoms.positions for atoms in structures])
    cell = np.stack([atoms.cell.array for atoms in structures])
    natoms = torch.tensor([len(atoms) for atoms in structures])
    return torch.tensor(pos, dtype=dtype), torch.tensor(cell, dtype=dtype), natoms


def by_images(atoms: Atoms, cutoff: float, pbc=(True, True, True)) -> dict:
    """Loop over pairs and cells: squared lengths of all edges by (source, target, offset)."""
    pos, cell = atoms.positions, atoms.cell.array
    # far more cells than needed: those that fit the largest distance between atoms, and 2
    planes = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    extent = np.linalg.norm(pos[:, None] - pos[None], axis=-1).max()
    counts = (np.ceil((cutoff + extent) / planes).astype(int) + 2) * np.array(pbc)
    found = {}
    offsets = np.array(list(product(*(range(-n, n + 1) for n in counts))))
    for i, j in product(range(len(pos)), repeat=2):
        squared = ((pos[j] + offsets @ cell - pos[i]) ** 2).sum(1)
        for k in np.flatnonzero((squared > 1e-4) & (squared <= cutoff**2)):
            found[(j, i, *offsets[k].tolist())] = squared[k]
    return found


def keys(graph) -> list[tuple]:
    return [tuple(row) for row in torch.cat([graph[0].T, graph[1].long()], 1).tolist()]


def in_order(edges) -> list[tuple]:
    """Sort edges by target, source, offset."""
    return sorted(edges, key=lambda e: (e[1], e[0], *e[2:]))


@pytest.mark.parametrize("name", PERIODIC)
def test_periodic_edges_are_those_of_a_loop_over_images(name):
    atoms = periodic(name)
    expected = by_images(atoms, 5.0)
    found = keys(periodic_radius_graph(*tensors(atoms), 5.0))
    assert found == in_order(expected)
    moved, cell, natoms = tensors(atoms)
    moved = moved + torch.tensor([[3.0, -70.0, 0.2]])
    assert keys(periodic_radius_graph(moved, cell, natoms, 5.0)) == found


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("max_neighbors", [1, 12, 40])
@pytest.mark.parametrize("name", PERIODIC)
def test_periodic_edges_within_the_limit(name, max_neighbors, strict):
    """Which ties are kept at the limit is free; there are never more than ``max_neighbors``."""
    atoms = periodic(name)
    lengths = by_images(atoms, 5.0)
    found = keys(periodic_radius_graph(*tensors(atoms), 5.0, max_neighbors, strict=strict))
    assert found == in_order(found)
    for i in range(len(atoms)):
        kept = {e: lengths[e] for e in found if e[1] == i}
        ordered = sorted(squared for edge, squared in lengths.items() if edge[1] == i)
        limit = ordered[max_neighbors] if len(ordered) > max_neighbors else np.inf
        if strict:
            np.testing.assert_allclose(sorted(kept.values()), ordered[:max_neighbors], rtol=1e-9)
        else:
            expected = {
                e for e, squared in lengths.items() if e[1] == i and squared <= limit + 0.01
            }
            assert kept.keys() == expected


def test_partly_periodic_and_mixed_batches():
    """Cell vectors of directions that are not periodic are not read, and may be zero."""
    slab, skewed, benzene = periodic("slab"), periodic("skewed"), molecule("C6H6")
    flags = [(True, True, False), (False, True, True), (False, False, False)]
    full = [slab.copy(), skewed.copy(), benzene.copy()]
    full[2].cell = np.eye(3)
    expected, first = [], 0
    for atoms, pbc in zip(full, flags, strict=True):
        edges = by_images(atoms, 5.0, pbc)
        expected += [(j + first, i + first, *n) for j, i, *n in in_order(edges)]
        first += len(atoms)
    slab.cell[2] = 0
    found = periodic_radius_graph(*tensors(slab, skewed, benzene), 5.0, pbc=torch.tensor(flags))
    assert keys(found) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_structures_of_a_batch_do_not_change_each_other(dtype):
    structures = [periodic(name) for name in ("slab", "needle", "molecule in a box")]
    alone, first = [], 0
    for atoms in structures:
        edges, offsets = periodic_radius_graph(*tensors(atoms, dtype=dtype), 6.0, 20)
        alone.append((edges + first, offsets))
        first += len(atoms)
    together = periodic_radius_graph(*tensors(*structures, dtype=dtype), 6.0, 20)
    assert together.cell_offsets.dtype == dtype
    for found, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(found, torch.cat(parts, dim=-1 if found is together[0] else 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cell": torch.zeros(1, 3, 3)},
            "a volume in its periodic directions .* for structure 0",
        ),
        ({"cell": torch.eye(3)}, r"expected cell \(1, 3, 3\)"),
        ({"natoms": torch.tensor([3])}, "3 positions, the sum of natoms"),
        ({"pos": torch.full((2, 3), torch.nan)}, "positions must be finite, got .* for atom 0"),
        ({"max_neighbors": 0}, "max_neighbors must be at least 1"),
    ],
)
def test_bad_periodic_input(change, message):
    good = {"pos": torch.zeros(2, 3), "cell": torch.eye(3)[None], "natoms": torch.tensor([2])}
    with pytest.raises(ValueError, match=message):
        periodic_radius_graph(**{**good, "cutoff": 1.0, **change})
