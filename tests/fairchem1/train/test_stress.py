"""Test training with stress in two parts: loss and ranks."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem, in the spawned ranks too

import numpy as np
import pytest
import torch
from fairchem.core.common.utils import cg_change_mat
from helpers.ranks import on_ranks
from helpers.stressed import SCALES, WEIGHTS, batch_of, some_frames, stress_config, write_frames
from helpers.trainers import EXACT_MODEL

from dens.fairchem1 import DeNSTrainer


@pytest.fixture(scope="module")
def frames():
    return some_frames(2, 6)


@pytest.fixture(scope="module")
def src(tmp_path_factory, frames):
    return write_frames(tmp_path_factory.mktemp("crystals") / "data", frames)


def one_step(trainer, batch, step=1):
    trainer.model.train()
    trainer.step, trainer.epoch = step, 0.25
    out = trainer._forward(batch)
    return out, trainer._loss_terms(out, batch)


@pytest.mark.parametrize("head", ["dens.StressHead", "rank2_symmetric_head"])
def test_loss_by_a_plain_loop(src, frames, head):
    """Each part counts on clean structures alone; the energy on all."""
    trainer = DeNSTrainer(**stress_config(src, head=head))
    for step in range(1, 20):
        batch = batch_of(frames)
        out, terms = one_step(trainer, batch, step)
        clean = (batch.sigma == 0).tolist()
        if any(clean) and not all(clean):
            break
    for name, weight in WEIGHTS.items():
        scale, total = SCALES[name], 0.0
        for row, keep in enumerate(clean):
            target = (batch[name][row] - scale["mean"]) / scale["stdev"]
            total += keep * (out[name][row] - target).abs().mean().item()
        assert terms[name].item() == pytest.approx(weight * total / sum(clean), rel=1e-5)
    energy = [abs(out["energy"][i] - (e + 0.5) / 2).item() for i, e in enumerate(batch.energy)]
    assert terms["energy"].item() == pytest.approx(2 * np.mean(energy), rel=1e-5)
    # the stress that is evaluated is composed of both parts in physical units
    value = trainer.in_physical_units(out, batch).values
    irreps = torch.zeros(len(clean), 9)
    irreps[:, :1], irreps[:, 4:] = value["stress_isotropic"], value["stress_anisotropic"]
    torch.testing.assert_close(value["stress"], (irreps @ cg_change_mat(2)).detach())
    trainer._compute_loss(out, batch)
    metrics = trainer._compute_metrics(out, batch, trainer.evaluator, {})
    error = (value["stress"] - batch.stress.view(-1, 9))[torch.tensor(clean)].abs().mean().item()
    assert metrics["stress_mae"]["metric"] == pytest.approx(error, rel=1e-5)


def gradients(rank: int, src: str, split: list[list[int]]) -> dict[str, np.ndarray]:
    """Compute the gradients of a step on the structures of a rank."""
    trainer = DeNSTrainer(**stress_config(src, model=EXACT_MODEL))
    frames = some_frames(1, 4)
    batch = batch_of([frames[i] for i in split[rank]])
    batch.sample_id = torch.tensor(split[rank])
    _, terms = one_step(trainer, batch, step=3)
    sum(terms.values()).backward()
    return {name: p.grad.numpy() for name, p in trainer._unwrapped_model.named_parameters()}


def test_two_ranks_have_the_gradients_of_one(src, processes, free_port):
    reference = gradients(0, src, [[0, 1, 2, 3]])
    found = on_ranks(processes, 2, free_port, gradients, src, [[0], [1, 2, 3]])
    largest = max(abs(g).max() for g in reference.values())
    for of_rank in found:
        for name, grad in of_rank.items():
            assert abs(grad - reference[name]).max() < 1e-5 * max(1, largest), name
