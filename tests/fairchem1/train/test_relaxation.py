"""Test that the LBFGS of relaxations never steps uphill."""

import pytest
import torch
from fairchem.core.common.relaxation import ml_relaxation
from fairchem.core.common.relaxation.ml_relaxation import ml_relax
from fairchem.core.common.relaxation.optimizers.lbfgs_torch import LBFGS
from helpers.structures import make_batch

from dens.fairchem1.train.relaxation import SafeLBFGS, safe_lbfgs


class DoubleWells:
    """Stand-in for a trainer: each atom has E = k (x^2 - 1)^2 + y^2 + z^2, eV, about its pos."""

    device = torch.device("cpu")

    def __init__(self, batch, stiffness: float) -> None:
        self.origin, self.k = batch.pos.clone(), stiffness
        self.calls = []

    def predict(self, batch, **_):
        x, y, z = (batch.pos - self.origin).unbind(dim=1)
        energy = self.k * (x**2 - 1) ** 2 + y**2 + z**2
        forces = -torch.stack([4 * self.k * x * (x**2 - 1), 2 * y, 2 * z], dim=1)
        self.calls.append((batch.pos.clone(), forces.clone()))
        total = torch.zeros(len(batch.natoms)).index_add(0, batch.batch, energy)
        return {"energy": total[:, None], "forces": forces}

    def uphill(self, batch) -> int:
        """Count the steps of structures against their forces."""
        count = 0
        for (pos, forces), (later, _) in zip(self.calls, self.calls[1:], strict=False):
            work = ((later - pos) * forces).sum(dim=1)
            total = torch.zeros(len(batch.natoms)).index_add(0, batch.batch, work)
            count += int((total < -1e-5).sum())
        return count


def relax() -> tuple[torch.Tensor, int]:
    """Relax three structures from close to the tops between their atoms' wells at -1 and 1 Å.

    Returns:
        The final x of the free atoms, in Å, and the number of steps uphill.
    """
    batch = make_batch()
    wells = DoubleWells(batch, stiffness=0.5)
    generator = torch.Generator().manual_seed(0)
    batch.pos[:, 0] += 0.1 * torch.randn(len(batch.pos), generator=generator)
    options = {"maxstep": 0.04, "memory": 50, "damping": 1.0, "alpha": 70.0}
    relaxed = ml_relax(batch, wells, 200, fmax=0.01, relax_opt=options)
    return (relaxed.pos - wells.origin)[relaxed.fixed == 0, 0], wells.uphill(batch)


def test_descends_where_the_energy_curves_down():
    with safe_lbfgs():
        assert ml_relaxation.LBFGS is SafeLBFGS
        ends, uphill = relax()
    assert ends.abs() == pytest.approx(torch.ones_like(ends), abs=0.02)
    assert uphill == 0
    assert ml_relaxation.LBFGS is LBFGS
    assert relax()[1] > 0  # the test would notice
