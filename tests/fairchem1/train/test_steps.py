"""Test training steps: micro-batches, bfloat16, and the skipping of non-finite steps."""

import copy
import logging

import pytest
import torch
from helpers.trainers import DENS, EXACT_MODEL, write_dataset

from dens.settings import ConfigError


def states(trainer, steps: int):
    """Train, and return the weights after each of the first steps."""
    found = []
    complete = trainer.complete_step

    def record():
        complete()
        found.append(copy.deepcopy(trainer._unwrapped_model.state_dict()))
        if len(found) > steps:
            raise StopIteration

    trainer.complete_step = record
    with pytest.raises(StopIteration):
        trainer.train(disable_eval_tqdm=True)
    return found[1:]


@pytest.mark.parametrize("reduction", ["joint", "separate"])
def test_accumulation_equals_the_large_batch(new_trainer, tmp_path, reduction):
    """Four micro-batches of 2 give the gradients of 8 structures, also in a smaller last step."""
    src = write_dataset(tmp_path / "data", n=21)
    gradients = []
    for batch_size, micro_batches in ((8, 1), (2, 4)):
        trainer = new_trainer(
            src=src,
            model=EXACT_MODEL,
            dens={**DENS, "reduction": reduction},
            optim={"batch_size": batch_size, "grad_accumulation_steps": micro_batches},
        )
        assert len(trainer.train_loader) == 3
        found, metrics = [], []
        for step, batch in enumerate(trainer.train_loader, start=1):
            trainer.model.train()
            trainer.step, trainer.epoch = step, step / 3
            assert len(batch.sample_id.unique()) == len(batch.natoms) == (8, 8, 5)[step - 1]
            out = trainer._forward(batch)
            loss = trainer._compute_loss(out, batch)
            loss.backward()
            found.append({n: p.grad.clone() for n, p in trainer.model.named_parameters()})
            found[-1]["loss"] = loss.detach()
            metrics.append(trainer._compute_metrics(out, batch, trainer.evaluator, {}))
        gradients.append((found, metrics))
    (whole, whole_metrics), (split, split_metrics) = gradients
    for a, b in zip(whole, split, strict=True):
        largest = max(g.abs().max() for g in a.values())
        for name, gradient in a.items():
            error = (gradient - b[name]).abs().max()
            assert error <= 1e-5 * max(gradient.abs().max(), 1e-2 * largest), name
    for a, b in zip(whole_metrics, split_metrics, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name]["metric"] == pytest.approx(b[name]["metric"], rel=1e-4)


def not_a_number_at(trainer, steps) -> None:
    corrupt = trainer.corrupt_batch

    def spoil(batch, *args):
        corrupt(batch, *args)
        if trainer.step in steps and trainer.model.training:
            batch.energy[1] = float("nan")

    trainer.corrupt_batch = spoil


def test_a_step_with_a_loss_that_is_not_finite_is_skipped(new_trainer, caplog):
    trainer = new_trainer(optim={"max_epochs": 10})
    not_a_number_at(trainer, {2, 4})
    first, second, third, fourth, fifth = states(trainer, 5)
    equal = torch.equal
    for name in first:
        assert equal(first[name], second[name])
        assert equal(third[name], fourth[name])
    assert any(not equal(second[name], third[name]) for name in first)
    assert any(not equal(fourth[name], fifth[name]) for name in first)
    assert trainer.skipped_steps == trainer.metrics["skipped_steps"]["metric"] == 2
    assert all(m["metric"] == m["metric"] for m in trainer.metrics.values())  # none is NaN
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert "step 2, rank 0: not finite in structure sid " in errors[0]
    assert "label of energy" in errors[0]
    assert errors[1] == "step 2 is skipped: the loss term energy is not finite"


def test_a_gradient_that_is_not_finite_is_skipped(new_trainer, caplog):
    trainer = new_trainer(optim={"max_epochs": 10})
    weight = trainer.model.backbone.sphere_embedding.weight
    weight.register_hook(lambda g: g * float("inf") if trainer.step == 2 else g)
    average = []
    update = trainer.ema.update
    trainer.ema.update = lambda: (update(), average.append(trainer.step))
    first, second, third = states(trainer, 3)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(second[name], third[name]) for name in first)
    assert average[:2] == [1, 3]
    message = "step 2 is skipped: the gradient of backbone.sphere_embedding.weight is not finite"
    assert message in [record.getMessage() for record in caplog.records]


def test_too_many_skipped_steps_are_an_error(new_trainer):
    trainer = new_trainer(optim={"max_epochs": 10, "max_skipped_steps": 2})
    not_a_number_at(trainer, {1, 2, 4, 5, 6, 7})
    with pytest.raises(FloatingPointError) as error:
        trainer.train(disable_eval_tqdm=True)
    assert str(error.value) == (
        "3 steps in a row were not finite, the last one, 6, in the loss term energy; at most 2 may "
        "be (optim.max_skipped_steps)"
    )


def test_bfloat16(new_trainer):
    """Products are in bfloat16; weights, encoding, outputs and losses in float32."""
    dtypes = {}
    losses = []
    for amp_dtype in ("bfloat16", None):
        trainer = new_trainer(optim={"amp_dtype": amp_dtype}, dens={**DENS, "prob": 1.0})
        backbone = trainer.model.backbone
        backbone.force_encoding.register_forward_hook(lambda m, a, out: seen("encoding", out))
        ffn = backbone.blocks[0].ffn.scalar_mlp

        def seen(name, out, amp_dtype=amp_dtype):
            dtypes[name, amp_dtype] = out.dtype

        ffn.register_forward_hook(lambda m, a, out: seen("mlp", out))
        batch = next(iter(trainer.train_loader))
        trainer.model.train()
        trainer.step, trainer.epoch = 1, 0.5
        out = trainer._forward(batch)
        loss = trainer._compute_loss(out, batch)
        loss.backward()
        losses.append(loss.item())
        assert {value.dtype for value in out.values()} == {torch.float32}
        assert loss.dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in trainer.model.parameters())
        trainer.train(disable_eval_tqdm=True)
        assert trainer.best_val_metric < 1e9
    assert dtypes["encoding", "bfloat16"] == torch.float32
    assert dtypes["mlp", "bfloat16"] == torch.bfloat16
    assert dtypes["mlp", None] == torch.float32
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"grad_accumulation_steps": 0}, "grad_accumulation_steps must be an integer >= 1, got 0"),
        ({"amp_dtype": "fp16"}, "amp_dtype must be 'bfloat16' or null (--amp is float16), got"),
        ({"max_skipped_steps": 1.5}, "(optim.max_skipped_steps)"),
    ],
)
def test_refusals(new_trainer, optim, message):
    with pytest.raises(ConfigError) as error:
        new_trainer(optim=optim)
    assert message in str(error.value)
