"""The contract of every training method: what a host may rely on, whatever the method.

A new method is one more entry of :data:`OBJECTIVES`.
"""

from __future__ import annotations

import pytest
import torch
from helpers.structures import make_batch
from taylor_objective import TaylorObjective
from torch_geometric.data import Batch

from dens.denoising.config import parse_config
from dens.denoising.objective import DeNSObjective
from dens.objective import Objective, Prediction, Progress, Target
from dens.random import make_generator
from dens.relax.config import MoreRedConfig
from dens.relax.objective import MoreRedObjective


def dens(**settings) -> DeNSObjective:
    common = {"prob": 0.7, "denoising_coefficient": 10.0}
    return DeNSObjective(parse_config({**common, **settings}))


OBJECTIVES = {
    "dens": dens(sigma=0.1, corrupt_ratio=0.5),
    "dens_ladder": dens(sigma_low=0.01, sigma_high=0.3, num_sigmas=5, reduction="separate"),
    "morered": MoreRedObjective(MoreRedConfig()),
    "taylor": TaylorObjective(prob=0.7, scale=0.05),
}
PROGRESS = Progress(0.5, 10, 100)
N = 6


@pytest.fixture(params=OBJECTIVES.values(), ids=OBJECTIVES.keys())
def objective(request) -> Objective:
    return request.param


def corrupted(objective: Objective, ids=range(N)) -> Batch:
    """Return structures of a batch, by number, as the method makes them."""
    batch = Batch.from_data_list([make_batch(N)[i] for i in ids])
    streams = [make_generator(0, 0, i) for i in ids]
    objective.apply(batch, objective.draws(batch, streams, make_generator(1)), PROGRESS)
    return batch


def targets_of(objective: Objective, batch: Batch) -> list[Target]:
    """Return the method's targets, of energy and forces or of what it makes itself."""
    if objective.makes:
        named = [(name, batch[name].view(len(batch.pos), -1)) for name in objective.makes]
        free = batch.fixed == 0
        base = [_target(name, value, free, "atom") for name, value in named]
    else:
        every = torch.ones_like(batch.natoms, dtype=torch.bool)
        base = [
            _target("energy", batch.energy.view(-1, 1), every, "structure"),
            _target("forces", batch.forces, batch.fixed == 0, "atom"),
        ]
    return objective.targets(base, batch, PROGRESS)


def _target(name, value, rows, level) -> Target:
    def error(output, target):
        return (output - target).norm(dim=-1)

    return Target(name, value=value, rows=rows, level=level, weight=2.0, error=error)


def test_a_structure_is_the_same_in_any_batch(objective):
    """Its random numbers depend on neither its place nor its neighbours."""
    whole, part = corrupted(objective), corrupted(objective, [4, 1])
    for place, i in enumerate([4, 1]):
        ours = part.pos[part.batch == place]
        torch.testing.assert_close(ours, whole.pos[whole.batch == i], rtol=0, atol=0)


def test_something_is_displaced_by_the_noise_that_it_reports(objective):
    original, batch = make_batch(N), corrupted(objective)
    _, noise = objective.noise({"noise": torch.zeros_like(batch.pos)}, batch)
    torch.testing.assert_close(batch.pos - original.pos, noise, atol=1e-5, rtol=1e-5)
    moved = (noise != 0).any(1)
    assert moved.any()
    assert not (moved & ~objective.corrupted_atoms(batch)).any()


def test_fixed_atoms_stay_to_the_last_bit(objective):
    original, batch = make_batch(N), corrupted(objective)
    fixed = original.fixed == 1
    assert torch.equal(batch.pos[fixed], original.pos[fixed])


def test_fields_have_the_levels_that_they_declare(objective):
    batch = corrupted(objective)
    rows = {"atom": len(batch.pos), "structure": len(batch.natoms)}
    for field in objective.fields:
        assert len(batch[field.name]) == rows[field.level], field


def test_rows_that_do_not_count_reach_neither_loss_nor_gradient(objective):
    batch = corrupted(objective)
    found = targets_of(objective, batch)
    assert found
    for target in found:
        output = torch.randn(target.value.shape)
        output[~target.rows] = torch.nan
        output.requires_grad_()
        total = target.total(output)
        total.backward()
        assert total.isfinite()
        assert not output.grad[~target.rows].any()
        assert target.count >= target.rows.sum() * (target.mean_over is None)


def test_metrics_are_those_that_it_names(objective):
    batch = corrupted(objective)
    values = {
        "energy": torch.zeros(N),
        "forces": torch.zeros_like(batch.pos),
        "noise": torch.zeros_like(batch.pos),
        "time": torch.zeros(len(batch.pos)),
    }
    rows = {"energy": torch.ones(N, dtype=torch.bool), "forces": batch.fixed == 0}
    found = objective.metrics(Prediction(values, rows), batch)
    assert found
    assert found.keys() <= set(objective.metric_names())
    assert all(ratio.weight > 0 for ratio in found.values())


def test_it_describes_itself_in_one_line(objective):
    assert objective.describe()
    assert "\n" not in objective.describe()
    assert objective.typical_sigma > 0
    assert list(objective.sigmas) == sorted(objective.sigmas)
