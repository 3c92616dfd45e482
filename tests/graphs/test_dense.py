"""Test the search of a GPU for neighbours against that of a CPU, and its choice among ties."""

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule

from dens.graphs import dense
from dens.graphs.dense import dense_radius_graph, reach_of_images
from dens.graphs.radius import periodic_radius_graph, radius_graph

CUTOFF = 5.0


def structures(rattle: float):
    rng = np.random.default_rng(0)
    slab, crystal = fcc111("Cu", (2, 3, 3), vacuum=6.0), bulk("NaCl", "rocksalt", 5.64)
    tilted = bulk("Fe", cubic=True) * (1, 2, 1)
    shear = np.array([[0, 1.5, 0], [0, 0, 1], [0, 0, 0]])
    tilted.set_cell(tilted.cell.array + shear, scale_atoms=True)
    far = slab.copy()  # atoms in other cells than their own
    far.positions += rng.integers(-2, 3, (len(far), 3)) @ far.cell.array
    found = [slab, crystal, tilted, far, molecule("C6H6", vacuum=3.0)]
    for atoms in found:
        atoms.pbc = True
        atoms.positions += rng.normal(0, rattle, atoms.positions.shape)
    return found


def tensors(found):
    pos = torch.tensor(np.concatenate([atoms.positions for atoms in found]))
    cell = torch.tensor(np.stack([atoms.cell.array for atoms in found]))
    natoms = torch.tensor([len(atoms) for atoms in found])
    return pos, cell, natoms, torch.arange(len(found)).repeat_interleave(natoms)


def search(found, *limits, pbc=None, **options):
    pos, cell, natoms, batch = tensors(found)
    reach = reach_of_images(pos, cell, natoms, pbc, CUTOFF)
    return dense_radius_graph(pos, batch, cell, natoms, reach, CUTOFF, *limits, **options)


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("limit", [None, 1, 12, 10_000])
def test_edges_are_those_of_the_tree(monkeypatch, limit, strict, pieces):
    if pieces:
        monkeypatch.setattr(dense, "_LARGEST", 3000)
    pos, cell, natoms, _ = tensors(structures(rattle=0.1))
    expected = periodic_radius_graph(pos, cell, natoms, CUTOFF, limit, strict=strict)
    graph = search(structures(rattle=0.1), limit, strict=strict)
    assert torch.equal(graph.edge_index, expected.edge_index)
    source, target = expected.edge_index
    tied = source == target  # the images of an atom itself, of which several are equally far
    assert torch.equal(graph.cell_offsets[~tied], expected.cell_offsets[~tied])
    count = expected.edge_index[1].bincount(minlength=len(pos))
    assert torch.equal(graph.count, count)
    assert torch.equal(graph.count_on_host, count)


@pytest.mark.parametrize("limit", [5, 20])
def test_ties_are_decided_by_source_and_offset(limit):
    found = structures(rattle=0.0)
    graph, again = search(found, limit), search(found, limit)
    assert torch.equal(graph.edge_index, again.edge_index)
    pos, cell, natoms, batch = tensors(found)
    expected = periodic_radius_graph(pos, cell, natoms, CUTOFF, limit)
    count = expected.edge_index[1].bincount(minlength=len(pos))
    assert torch.equal(graph.count, count)

    def lengths(edge_index, offsets):
        source, target = edge_index
        shift = (offsets[:, :, None] * cell[batch[target]]).sum(1)
        squared = (pos[source] + shift - pos[target]).norm(dim=1)
        return torch.cat([part.sort().values for part in squared.split(count.tolist())])

    found, known = lengths(graph.edge_index, graph.cell_offsets), lengths(*expected)
    torch.testing.assert_close(found, known, rtol=0, atol=1e-6)


def test_open_structures():
    pos, _, natoms, batch = tensors(structures(rattle=0.1))
    pbc = torch.zeros(len(natoms), 3, dtype=torch.bool)
    graph = search(structures(rattle=0.1), 6, pbc=pbc)
    assert torch.equal(graph.edge_index, radius_graph(pos, batch, CUTOFF, 6))
    assert not graph.cell_offsets.any()


def test_atoms_without_neighbours():
    lonely = molecule("CH4", vacuum=20.0)[:1]
    lonely.pbc = True
    graph = search([lonely], 5)
    assert graph.edge_index.shape == (2, 0)
    assert graph.cell_offsets.shape == (0, 3)
    assert graph.count.tolist() == [0]


@pytest.mark.parametrize(
    ("what", "message"),
    [("pos", "positions must be finite, got"), ("cell", "a periodic cell must have a volume, got")],
)
def test_refusals(what, message):
    pos, cell, natoms, _ = tensors(structures(rattle=0.0))
    {"pos": pos, "cell": cell}[what][1] = float("nan") if what == "pos" else 0.0
    with pytest.raises(ValueError, match=message):
        reach_of_images(pos, cell, natoms, None, CUTOFF)
