"""Test training with stress in two parts on crystals: the loss, and the stress of both parts."""

import copy

import pytest
import torch
from fairchem.core.common.utils import cg_change_mat
from helpers.loops import loss_by_loop, one_step
from helpers.stress_settings import STOCK_STRESS_HEAD, STRESS_HEAD
from helpers.stressed import batch_of, some_frames, write_frames
from helpers.trainers import MODEL

HEADS = {"dens": STRESS_HEAD, "fairchem": STOCK_STRESS_HEAD}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_loss_by_a_plain_loop(new_trainer, tmp_path, head):
    """Each part counts on clean structures alone; the energy on all."""
    frames = some_frames(2, 6)
    model = copy.deepcopy(MODEL)
    model["heads"]["stress"] = head
    trainer = new_trainer(src=write_frames(tmp_path / "crystals", frames), model=model)
    for step in range(1, 20):
        batch = batch_of(frames)
        out, loss = one_step(trainer, batch, step)
        clean = batch.sigma == 0
        if clean.any() and not clean.all():
            break
    assert loss.item() == pytest.approx(loss_by_loop(trainer, out, batch), rel=1e-5)
    # the stress that is evaluated is composed of both parts in physical units
    value = trainer.in_physical_units(out, batch).values
    irreps = torch.zeros(len(clean), 9)
    irreps[:, :1], irreps[:, 4:] = value["stress_isotropic"], value["stress_anisotropic"]
    torch.testing.assert_close(value["stress"], (irreps @ cg_change_mat(2)).detach())
    metrics = trainer._compute_metrics(out, batch, trainer.evaluator, {})
    error = (value["stress"] - batch.stress.view(-1, 9))[clean].abs().mean().item()
    assert metrics["stress_mae"]["metric"] == pytest.approx(error, rel=1e-5)
