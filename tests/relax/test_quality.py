"""Test distances between structures against ASE and SciPy."""

import numpy as np
import pytest
import torch
from ase.geometry import find_mic
from scipy.spatial.transform import Rotation

from dens.relax.quality import minimum_image, superpose


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
