"""Test that the LBFGS of relaxations never steps uphill."""

from pathlib import Path

import pytest
import torch
from fairchem.core.common.relaxation import ml_relaxation
from fairchem.core.common.relaxation.ml_relaxation import ml_relax
from fairchem.core.common.relaxation.optimizers.lbfgs_torch import LBFGS
from fairchem.core.trainers import ocp_trainer
from helpers.structures import make_batch

from dens.fairchem1.train.relaxation import SafeLBFGS, safe_lbfgs
from dens.settings import ConfigError


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


def relax_to(folder: Path, sids: list, fids: list[int] | None) -> list[str]:
    """Relax structures with these identifiers, twice; return the trajectories written."""
    batch = make_batch()
    batch.sid = sids
    if fids is not None:
        batch.fid = torch.tensor(fids)
    with safe_lbfgs():
        for _ in range(2):
            relax_opt = {"memory": 50, "traj_dir": folder}
            ml_relax(batch, DoubleWells(batch, stiffness=0.5), 2, fmax=0.01, relax_opt=relax_opt)
            assert ocp_trainer.check_traj_files(batch, folder)
        assert not ocp_trainer.check_traj_files(batch, None)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("sids", "fids", "names"),
    [
        (["a/run", "b/run", "run"], None, ["a/run.traj", "b/run.traj", "run.traj"]),
        (["a/run", "a/run", "b"], [0, 1, 0], ["a/run-1.traj", "a/run.traj", "b.traj"]),
        (["v.1", "v.2", "é"], [0, 0, 7], ["v.1.traj", "v.2.traj", "é-7.traj"]),
        (torch.tensor([5, 6, 5]), [0, 0, 3], ["5-3.traj", "5.traj", "6.traj"]),
    ],
)
def test_each_structure_has_a_trajectory(tmp_path, sids, fids, names):
    assert relax_to(tmp_path / "traj", sids, fids) == names


@pytest.mark.parametrize(
    ("sids", "message"),
    [
        (["a", "a", "b"], "two structures have the trajectory a: "),
        (["../a", "b", "c"], "the sid '../a' is no file name"),
        (["/a", "b", "c"], "the sid '/a' is no file name"),
    ],
)
def test_trajectories_are_not_overwritten(tmp_path, sids, message):
    with pytest.raises(ConfigError, match=message):
        relax_to(tmp_path / "traj", sids, None)
    assert not any(tmp_path.iterdir())
