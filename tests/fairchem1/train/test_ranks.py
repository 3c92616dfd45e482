"""Test that gloo ranks, data or graph parallel, train as one process does."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem, in the spawned ranks too

import numpy as np
import pytest
from helpers.ranks import assert_same, gradients, gradients_of_rank, on_ranks
from helpers.stress_settings import STRESS_HEAD
from helpers.trainers import EXACT_MODEL, trainer_config, write_dataset

from dens.fairchem1 import DeNSTrainer

WITH_STRESS = {**EXACT_MODEL, "heads": {**EXACT_MODEL["heads"], "stress": STRESS_HEAD}}


@pytest.mark.parametrize(
    ("split", "corrupted", "reduction", "gp"),
    [
        # rank 0 has all corrupted structures, rank 1 none, fewer atoms, and one that is all fixed
        ([[0, 1, 2], [3, 4]], [0, 1], "joint", False),
        ([[0, 1], [2, 3, 4]], [0, 1], "separate", False),
        # rank 2 has no free and no corrupted atom
        ([[0], [1, 2, 3], [4]], [1, 2], "joint", False),
        ([[0, 3], [1, 2], [4]], [1, 2], "separate", False),
        # no rank has a corrupted atom
        ([[0, 1, 2, 3], [4]], [], "joint", False),
        ([[0, 1, 2, 3, 4]] * 2, [0, 1], "joint", True),
        ([[0, 1, 2, 3, 4]] * 2, [], "separate", True),
    ],
    ids=["2, joint", "2, separate", "3, joint", "3, separate", "2, clean", "graph", "graph, clean"],
)
def test_ranks_have_the_gradients_of_one(
    tmp_path, processes, free_port, split, corrupted, reduction, gp
):
    """Each rank has the gradients, the logged loss and the metrics of one process."""
    src = write_dataset(tmp_path / "data", virial=True)
    reference = gradients(src, [0, 1, 2, 3, 4], corrupted, reduction, WITH_STRESS)
    args = (src, split, corrupted, reduction, WITH_STRESS)
    for of_rank in on_ranks(processes, len(split), free_port, gradients_of_rank, *args, gp=gp):
        assert_same(of_rank, reference)


def train(src: str, batch_size: int, spoil: tuple[int, int] | None = None) -> dict:
    """Train for three steps of the inherited loop; return weights, noise and skipped steps.

    Args:
        spoil: the step and the structure whose energy becomes NaN.
    """
    optim = {"batch_size": batch_size, "max_epochs": 1, "ema_decay": None}
    optim["scheduler_params"] = {
        "lambda_type": "cosine", "warmup_factor": 0.2, "warmup_epochs": 0.4, "lr_min_factor": 0.1
    }  # fmt: skip
    trainer = DeNSTrainer(**trainer_config(src, model=EXACT_MODEL, optim=optim))
    noise = {}
    corrupt_batch = trainer.corrupt_batch

    def record(batch, *args):
        corrupt_batch(batch, *args)
        if not trainer.model.training:  # denoising validation
            return
        for i, structure in enumerate(batch.sample_id.tolist()):
            atoms = batch.batch == i
            noise[trainer.step, structure] = batch.noise[atoms].numpy()
            if (trainer.step, structure) == spoil:
                batch.energy[i] = float("nan")

    trainer.corrupt_batch = record
    trainer.train(disable_eval_tqdm=True)
    named = trainer._unwrapped_model.named_parameters()
    weights = {name: p.detach().numpy() for name, p in named}
    return {"noise": noise, "weights": weights, "skipped": trainer.skipped_steps}


def _train_on_rank(rank, src, batch_size, spoil) -> dict:
    return train(src, batch_size, spoil)


@pytest.mark.parametrize("world_size", [2, 3])
def test_training_does_not_depend_on_the_number_of_ranks(
    tmp_path, processes, free_port, world_size
):
    """Steps of six structures give the same noise and weights on 1, 2 and 3 ranks.

    The second step is not finite on one rank, and all ranks skip it.
    """
    src = write_dataset(tmp_path / "data", n=18)
    alone = train(src, 6)
    structure = max(s for step, s in alone["noise"] if step == 2)
    spoil = (2, structure)
    alone = train(src, 6, spoil)
    args = (src, 6 // world_size, spoil)
    together = {}
    for result in on_ranks(processes, world_size, free_port, _train_on_rank, *args):
        together.update(result["noise"])
        assert result["skipped"] == alone["skipped"] == 1
        for name, weight in alone["weights"].items():
            # AdamW's first steps are as long for a gradient of rounding as for any other
            np.testing.assert_allclose(result["weights"][name], weight, rtol=1e-3, atol=2e-4)
    assert together.keys() == alone["noise"].keys()
    assert any(noise.any() for noise in together.values())
    for key, noise in alone["noise"].items():
        assert np.array_equal(together[key], noise)
