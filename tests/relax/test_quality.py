"""Test distances between structures against ASE and SciPy."""

import importlib
import sys

import numpy as np
import pytest
import torch
from ase.geometry import find_mic
from scipy.spatial.transform import Rotation

from dens.relax.quality import distances, minimum_image, same_molecule, share_within, superpose


def test_superposition_equals_scipys():
    rng = np.random.default_rng(0)
    natoms = torch.tensor([4, 1, 7, 2])
    batch = torch.arange(4).repeat_interleave(natoms)
    pos, reference = torch.from_numpy(rng.normal(size=(2, 14, 3)) * 3)
    found = superpose(pos, reference, batch, natoms)
    torch.testing.assert_close(found[batch == 1], reference[batch == 1])  # a single atom
    for s in (0, 2, 3):
        a, b = (x[batch == s].numpy() for x in (pos, reference))
        centred, target = a - a.mean(0), b - b.mean(0)
        _, distance = Rotation.align_vectors(target, centred)
        own = found[batch == s].numpy()
        assert np.sqrt(((own - b) ** 2).sum()) == pytest.approx(distance, abs=1e-9)
        np.testing.assert_allclose(own.mean(0), b.mean(0), atol=1e-12)


def test_a_mirror_image_is_not_superposed():
    chiral = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=torch.float64)
    batch, natoms = torch.zeros(4, dtype=torch.long), torch.tensor([4])
    mirrored = chiral * torch.tensor([-1.0, 1, 1])
    assert (superpose(mirrored, chiral, batch, natoms) - chiral).norm() > 0.5
    turned = chiral @ torch.tensor(Rotation.random(random_state=0).as_matrix())
    torch.testing.assert_close(superpose(turned, chiral, batch, natoms), chiral)


@pytest.mark.parametrize(
    "cell", [np.diag([3.0, 4, 5]), [[3.0, 0, 0], [1.5, 2.6, 0], [1.5, 0.9, 2.4]]]
)
def test_minimum_image_equals_ases(cell):
    cell = np.array(cell)
    vectors = np.random.default_rng(0).normal(0, 10, (200, 3))
    batch = torch.tensor([0, 1]).repeat_interleave(100)
    cells = torch.from_numpy(np.stack([cell, np.zeros((3, 3))]))
    found = minimum_image(torch.from_numpy(vectors), cells, batch).numpy()
    expected, _ = find_mic(vectors[:100], cell)
    np.testing.assert_allclose(found[:100], expected, atol=1e-9)
    np.testing.assert_array_equal(found[100:], vectors[100:])


def test_distances_and_thresholds_equal_fairchems():
    """Mean distances of free atoms at minimum images, and the success of IS2RS from them."""
    importlib.import_module("dens.fairchem1")  # supplies what fairchem imports
    from fairchem.core.modules.evaluator import average_distance_within_threshold, min_diff

    rng = np.random.default_rng(0)
    natoms, cells = torch.tensor([6, 9, 4]), np.stack([np.diag([8.0, 9, 10])] * 3)
    batch = torch.arange(3).repeat_interleave(natoms)
    reference = torch.from_numpy(rng.uniform(0, 8, (19, 3)))
    moved = torch.from_numpy(rng.normal(0, 0.1, (19, 3)) * np.array([0.5, 1, 2])[batch, None])
    pos = reference + moved + 8 * torch.tensor([1.0, 0, 0])
    fixed = torch.arange(19) % 3 == 0
    pos[fixed] = reference[fixed]
    found = distances(pos, reference, batch, natoms, fixed=fixed, cell=torch.from_numpy(cells))
    free = ~fixed
    prediction = {"positions": pos[free], "natoms": batch[free].bincount()}
    target = {**prediction, "positions": reference[free]}
    target |= {"cell": torch.from_numpy(cells), "pbc": torch.ones(3, dtype=torch.bool)}
    theirs = average_distance_within_threshold(prediction, target)["metric"]
    assert share_within(found.mean) == pytest.approx(theirs)
    assert 0.3 < theirs < 0.9
    for s in range(3):
        own = free & (batch == s)
        vectors = min_diff(pos[own].numpy(), reference[own].numpy(), cells[s], [True] * 3)
        lengths = np.linalg.norm(vectors, axis=1)
        assert found.mean[s].item() == pytest.approx(lengths.mean())
        assert found.rmsd[s].item() == pytest.approx((lengths**2).mean() ** 0.5)


def test_distances_of_open_structures_are_superposed():
    rng = np.random.default_rng(1)
    reference = torch.from_numpy(rng.normal(0, 2, (8, 3)))
    turned = reference @ torch.tensor(Rotation.random(random_state=1).as_matrix()) + 5
    batch, natoms = torch.zeros(8, dtype=torch.long), torch.tensor([8])
    found = distances(turned, reference, batch, natoms)
    assert max(found.rmsd.item(), found.mean.item()) < 1e-9
    held = torch.arange(8) == 0
    assert distances(turned, reference, batch, natoms, fixed=held).rmsd > 1
    none = distances(turned, reference, batch, natoms, fixed=torch.ones(8))
    assert (none.rmsd.item(), none.mean.item()) == (0, 0)


def test_the_same_molecule():
    """Bonds, and the stereochemistry of lactic acid; a mirror image is another molecule."""
    pytest.importorskip("rdkit")
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSmiles("C[C@H](O)C(=O)O"))
    assert AllChem.EmbedMolecule(molecule, randomSeed=1) == 0
    numbers = torch.tensor([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    pos = torch.tensor(molecule.GetConformer().GetPositions())
    rng = np.random.default_rng(0)
    assert same_molecule(numbers, pos + torch.from_numpy(rng.normal(0, 0.02, pos.shape)), pos)
    turned = pos @ torch.tensor(Rotation.random(random_state=0).as_matrix())
    assert same_molecule(numbers, turned, pos) is True
    assert same_molecule(numbers, pos * torch.tensor([-1.0, 1, 1]), pos) is False
    assert same_molecule(numbers, 1.6 * pos, pos) is False
    apart = torch.arange(3 * len(pos)).view(-1, 3) * 10.0
    assert same_molecule(numbers, pos, apart) is None


def test_without_rdkit(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ValueError, match=r"RDKit, which is not installed: pip install 'fairchem-"):
        same_molecule(torch.ones(2), torch.zeros(2, 3), torch.zeros(2, 3))
