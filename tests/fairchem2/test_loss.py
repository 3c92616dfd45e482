"""Test the loss of a training step: a plain loop, and the stock unit where nothing is corrupted."""

from __future__ import annotations

import pytest
import torch
from fairchem.core.units.mlip_unit import mlip_unit
from helpers.stock2 import DENS, train_steps, weights

from dens.fairchem2.attach import NOISE
from dens.random import Stream


@pytest.fixture
def steps(monkeypatch):
    """List what fairchem computes a step's loss from, and the loss terms."""
    stock, found = mlip_unit.compute_loss, []

    def compute_loss(tasks, predictions, batch):
        loss = stock(tasks, predictions, batch)
        found.append((predictions, batch, {k: v.item() for k, v in loss.items()}))
        return loss

    monkeypatch.setattr(mlip_unit, "compute_loss", compute_loss)
    return found


def mean_error(errors: list[list[float]], counts: list[int], reduction: str) -> float:
    """Average errors of atoms, listed by structure, over ``counts`` atoms of each."""
    if reduction == "mean":
        return sum(map(sum, errors)) / max(sum(counts), 1)
    means = [sum(e) / n for e, n in zip(errors, counts, strict=True) if n]
    return sum(means) / max(len(means), 1)


def plain_loop(predictions, batch, original, prefix, dens, reduction):
    """Compute the force and noise terms of a task atom by atom in Python floats."""
    forces = predictions[f"{prefix}forces"]["forces"].detach()
    noise = predictions[NOISE]["noise"].detach()
    true = original[f"{prefix}forces"]
    clean, corrupted, counts = [], [], []
    for s in range(len(batch.natoms)):
        lists = [], []
        for i in (batch.batch == s).nonzero().view(-1).tolist():
            if not true[i].isfinite().all():
                continue
            if batch.noise_mask[i]:
                moved = batch.pos[i].detach() - original.pos[i]
                lists[1].append((noise[i] - moved / dens["sigma"]).norm().item())
            elif not batch.fixed[i]:
                lists[0].append((forces[i] - true[i] / 1.5).norm().item())
        clean.append(lists[0])
        corrupted.append(lists[1])
        counts.append((len(lists[0]), len(lists[1])))
    joint = dens.get("reduction", "joint") == "joint"
    of_forces = [a + b if joint else a for a, b in counts]
    of_noise = [a + b if joint else b for a, b in counts]
    force_term = 10 * mean_error(clean, of_forces, reduction)
    return force_term, 7 * mean_error(corrupted, of_noise, reduction)


@pytest.mark.parametrize("reduction", ["mean", "per_structure"])
@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("dens", [{}, {"reduction": "separate", "corrupt_fixed_atoms": True}])
def test_equals_the_plain_loop(new_runner, steps, dens, sets, reduction):
    settings = {**DENS, **dens}
    runner = new_runner(sets, dens=settings, reduction=reduction)
    batches = [batch for batch, _ in zip(runner.train_dataloader, range(2), strict=False)]
    originals = [batch.clone() for batch in batches]
    train_steps(runner, batches)
    prefixes = ["oc20_", "omat_"] if sets == 2 else [""]
    corrupted = 0
    for (predictions, batch, terms), original in zip(steps, originals, strict=True):
        corrupted += int(batch.noise_mask.sum())
        noise = 0.0
        for prefix in prefixes:
            forces, part = plain_loop(predictions, batch, original, prefix, settings, reduction)
            assert terms[f"{prefix}forces"] == pytest.approx(forces, rel=1e-5)
            noise += part
        assert terms[NOISE] == pytest.approx(noise, rel=1e-5)
    assert corrupted


def test_gradient_forces_and_stress(new_runner, steps):
    """Forces of atoms outside C count, the stress of corrupted structures does not."""
    runner = new_runner(gradient=True)
    batches = [batch for batch, _ in zip(runner.train_dataloader, range(3), strict=False)]
    originals = [batch.clone() for batch in batches]
    train_steps(runner, batches)
    counted = masked = 0
    for (predictions, batch, terms), original in zip(steps, originals, strict=True):
        forces, noise = plain_loop(predictions, batch, original, "", DENS, "mean")
        assert (terms["forces"], terms[NOISE]) == pytest.approx((forces, noise), rel=1e-5)
        clean = batch.sigma == 0
        counted, masked = counted + int(clean.sum()), masked + int((~clean).sum())
        error = predictions["stress"]["stress"].view(-1, 9) - original.stress.view(-1, 9) / 1.5
        stress = error[clean].abs().mean().item() if clean.any() else 0
        assert terms["stress"] == pytest.approx(5 * stress, rel=1e-5)
    assert counted
    assert masked


@pytest.mark.parametrize(
    ("sets", "settings"),
    [
        (1, {}),
        (1, {"reduction": "per_structure"}),
        (2, {}),
        (2, {"reduction": "per_structure"}),
        (1, {"gradient": True}),
    ],
)
def test_without_corruption_it_is_the_stock_unit(new_runner, sets, settings):
    """Weights are equal bit for bit after some steps."""
    found = []
    for dens in ({**DENS, "prob": 0.0}, {**DENS, "clean_end": "auto"}, None):
        runner = new_runner(sets, dens=dens, **settings)
        batches = [batch for batch, _ in zip(runner.train_dataloader, range(3), strict=False)]

        def seed(step):
            torch.manual_seed(Stream.MODEL.generator(3, 0, step).initial_seed())

        train_steps(runner, batches, seed)
        found.append(weights(runner.train_eval_unit))
    ours, short, stock = found  # so short a training is clean
    for name, value in stock.items():
        assert torch.equal(ours[name], value), name
        assert torch.equal(short[name], value), name
