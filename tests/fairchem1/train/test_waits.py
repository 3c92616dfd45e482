"""Test that a training step on a GPU waits for it twice, and is the step of a CPU.

The GPU is pretended, see :mod:`benchmarks.pretended`.
"""

import logging

import pytest
import torch
from e3nn import o3
from helpers.trainers import DENS, MODEL

from benchmarks.pretended import PretendedGPU
from dens import transfer
from dens.denoising import force_encoding
from dens.fairchem1.train.optimizer import GroupedAverage

pytestmark = pytest.mark.slow

PLAIN = {**DENS, "prob": 0.0}
FAST = {**MODEL, "backbone": {**MODEL["backbone"], "fast": True}}
STOCK = {**MODEL, "backbone": {**MODEL["backbone"], "fast": False}}
GRAPH = "dens/graphs/dense.py, dense_radius_graph: copy to the host"
NUMBERS = "dens/transfer.py, read: copy to the host"


def take_step(trainer, batch) -> None:
    """Take a step as fairchem's loop does."""
    trainer.model.train()
    out = trainer._forward(batch)
    loss = trainer._compute_loss(out, batch)
    trainer.metrics = trainer._compute_metrics(out, batch, trainer.evaluator, trainer.metrics)
    trainer.metrics = trainer.evaluator.update("loss", loss.item(), trainer.metrics)
    trainer._backward(loss)
    trainer.scheduler.step()


def put(trainer, gpu: PretendedGPU) -> None:
    for module in (trainer.model, *trainer.normalizers.values(), *trainer.elementrefs.values()):
        gpu.put(module)
    trainer.load_optimizer()
    trainer.load_extras()  # averages of the weights


@pytest.mark.parametrize(
    ("dens", "expected"),
    [
        (DENS, {GRAPH: 1, NUMBERS: 1}),
        ({**DENS, "prob": 1.0, "corrupt_ratio": None}, {GRAPH: 1, NUMBERS: 1}),
        (PLAIN, {GRAPH: 1, NUMBERS: 1}),
    ],
    ids=["DeNS", "DeNS, all atoms", "plain"],
)
def test_waits_of_a_step(new_trainer, dens, expected):
    """The host learns the number of edges, and after the backward pass the numbers of the step."""
    trainer = new_trainer(model=FAST, dens=dens)
    batches = list(trainer.train_loader)
    with PretendedGPU() as gpu:
        put(trainer, gpu)
        for step, batch in enumerate(batches[:2], start=1):
            trainer.step, trainer.epoch = step, step / len(batches)
            gpu.waits.clear()
            gpu.launches.clear()
            take_step(trainer, batch)
    found = {place.rsplit(", ", 1)[0]: count for place, count in gpu.waits.items()}
    assert found == expected


def train(new_trainer, **settings):
    """Train as on a GPU and as on a CPU, on fairchem's modules; return both trainers."""
    trainers = []
    for on_gpu in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if on_gpu:
                patch.setattr(transfer, "is_host", lambda device: False)
                patch.setattr(force_encoding._FewKernels, "forward", harmonics_of_a_cpu)
            trainer = new_trainer(model=STOCK, **settings)
            trainer.history = record_metrics(trainer)
            spoil(trainer)
            trainer.train(disable_eval_tqdm=True)
        trainers.append(trainer)
    return trainers


def harmonics_of_a_cpu(self, vectors):
    """Compute the harmonics as on a CPU, since those of a GPU are rounded otherwise."""
    degrees = list(range(len(self.multiples)))
    return o3.spherical_harmonics(degrees, vectors, True, normalization="component")


def record_metrics(trainer) -> list:
    """Note all that is logged in training and validation."""
    history = []

    class Logger:
        def log(self, values, step, split=""):
            numbers = {name: float(value) for name, value in values.items()}
            history.append((split, step, numbers))

    trainer.logger = Logger()
    return history


def spoil(trainer) -> None:
    """Make the loss of step 2 and the gradient of step 3 not finite."""
    corrupt, weight = trainer.corrupt_batch, trainer.model.backbone.sphere_embedding.weight

    def corrupt_and_spoil(batch, *args):
        corrupt(batch, *args)
        if trainer.step == 2 and trainer.model.training:
            batch.energy[1] = float("nan")

    trainer.corrupt_batch = corrupt_and_spoil
    weight.register_hook(lambda g: g * float("inf") if trainer.step == 3 else g)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dens": PLAIN},
        {"optim": {"batch_size": 2, "grad_accumulation_steps": 2, "clip_grad_norm": 1e-3}},
    ],
    ids=["DeNS", "plain", "micro-batches, clipped"],
)
def test_a_step_read_late_is_the_step_of_a_cpu(new_trainer, settings, caplog):
    """Weights, averages, metrics, messages and skipped steps are the same to the last bit."""
    optim = {"max_epochs": 4, **settings.get("optim", {})}
    with caplog.at_level(logging.ERROR):
        late, early = train(new_trainer, **{**settings, "optim": optim})
    assert isinstance(late.ema, GroupedAverage)
    assert not isinstance(early.ema, GroupedAverage)
    for name, value in early.model.state_dict().items():
        assert torch.equal(late.model.state_dict()[name], value), name
    for ours, theirs in zip(late.ema.shadow_params, early.ema.shadow_params, strict=True):
        assert torch.equal(ours, theirs)
    training = [[line for line in t.history if line[0] != "system"] for t in (late, early)]
    assert len(training[0]) > 10
    assert training[0] == training[1]
    assert [list(line[2]) for line in training[0]] == [list(line[2]) for line in training[1]]
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert messages[: len(messages) // 2] == messages[len(messages) // 2 :]
    assert "step 2 is skipped: the loss term energy is not finite" in messages
    assert any("step 3 is skipped: the gradient of backbone.sphere" in line for line in messages)
    assert late.skipped_steps == early.skipped_steps == 2


def test_batches_move_with_their_sizes_known(batch):
    host = batch.clone()
    with PretendedGPU() as gpu:
        moved = transfer.to_device(batch, torch.device("cpu"))
        assert gpu.has(moved.pos)
        assert not gpu.has(transfer.on_host(moved).pos)
        assert moved.natoms.sum() == len(host.pos)
        assert moved.batch.max() + 1 == len(host.natoms)
        assert moved.atomic_numbers.max() == int(host.atomic_numbers.max())
    assert not gpu.waits
    for name, value in transfer.on_host(moved).to_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, host[name])


def test_numbers_are_read_exactly_in_one_transfer():
    tensors = {
        "loss": torch.tensor(0.1),
        "terms": torch.tensor([1e-300, float("nan")], dtype=torch.float64),
        "forces": torch.randn(4, 3),
        "nothing": torch.zeros(0, 3),
    }
    with PretendedGPU() as gpu:
        found = transfer.read(tensors)
    assert gpu.waits.total() == 1
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)
