"""MoreRed training: the loss by a plain loop, ranks and micro-batches, validation, refusals."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem, in the spawned ranks too

import numpy as np
import pytest
import torch
from helpers.ranks import on_ranks
from helpers.trainers import MODEL, morered_config, write_dataset
from kill_and_resume import compare

from dens.fairchem1 import DeNSTrainer, MoreRedTrainer
from dens.fairchem1.config.settle import settle
from dens.fairchem1.morered.denoisers import MoreRedDenoiser, Network
from dens.relax.evaluation import noisy_starts
from dens.relax.loop import relax_structures
from dens.relax.objective import mean_over_free
from dens.relax.structures import Structure
from dens.settings import ConfigError


def pairs_of(data, rng):
    return data.pos + torch.tensor(0.1 * rng.normal(size=data.pos.shape), dtype=torch.float32)


@pytest.mark.parametrize("coefficient", [0.9, 3.0])
def test_loss_is_that_of_a_plain_loop(dataset, coefficient):
    config = morered_config(dataset)
    for term in config["loss_functions"]:
        for settings in term.values():
            settings["coefficient"] = coefficient
    trainer = MoreRedTrainer(**config)
    trainer.model.train()
    batch = next(iter(trainer.train_loader))
    original = batch.pos.clone()
    out = trainer._forward(batch)
    loss = trainer._compute_loss(out, batch).item()
    noise = time = n = 0
    sigmas = trainer.objective.config.levels.sigmas
    for i in range(len(batch.pos)):
        if batch.fixed[i]:
            assert torch.equal(batch.pos[i], original[i])
            continue
        t = int(batch.level[batch.batch[i]])
        moved = ((batch.pos[i] - original[i]) / sigmas[t]).tolist()
        assert moved == pytest.approx(batch.noise[i].tolist(), abs=1e-4 / sigmas[t])
        noise += ((out["noise"][i] - batch.noise[i]) ** 2).mean().item()
        time += (out["time"][i].item() - t / 999) ** 2
        n += 1
    assert loss == pytest.approx(coefficient * (noise + time) / n, rel=1e-4)


def steps(src: str, batch_size: int, **optim) -> dict[str, np.ndarray]:
    """Train three steps; return the first step's gradient and the last weights by name."""
    settings = {"batch_size": batch_size, "max_epochs": 1, "ema_decay": None, **optim}
    config = morered_config(src, morered={"pair_share": 0.5}, optim=settings)
    config["optimizer"]["scheduler_params"]["warmup_epochs"] = 0.4
    trainer, found = MoreRedTrainer(**config), {}
    backward = trainer._backward

    def record(loss):
        backward(loss)
        for name, parameter in trainer._unwrapped_model.named_parameters():
            found.setdefault(name, parameter.grad.numpy().copy())

    trainer._backward = record
    trainer.train(disable_eval_tqdm=True)
    return found


def _steps_on_rank(rank, src, batch_size, optim) -> dict[str, np.ndarray]:
    return steps(src, batch_size, **optim)


def assert_equal_gradients(found, expected):
    largest = max(abs(g).max() for g in expected.values())
    for name, gradient in expected.items():
        error = abs(found[name] - gradient).max()
        assert error <= 1e-4 * max(abs(gradient).max(), 1e-2 * largest), name


@pytest.fixture
def pairs(tmp_path) -> str:
    """Twelve slabs with unrelaxed counterparts; one has none."""
    rng = np.random.default_rng(1)
    starts = {"pos_start": torch.tensor(rng.normal(size=(9, 3)), dtype=torch.float32)}
    return write_dataset(tmp_path / "pairs", n=12, **starts)


def test_ranks_and_micro_batches_have_the_gradient_of_one_batch(pairs, processes, free_port):
    expected = steps(pairs, 4)
    assert_equal_gradients(steps(pairs, 2, grad_accumulation_steps=2), expected)
    for found in on_ranks(processes, 2, free_port, _steps_on_rank, pairs, 2, {}):
        assert_equal_gradients(found, expected)


def test_validation_has_the_same_noise_every_time(dataset):
    trainer = MoreRedTrainer(**morered_config(dataset, optim={"eval_batch_size": 4}))
    first = trainer.validate("val", disable_tqdm=True)
    trainer.step = 7
    assert trainer.validate("val", disable_tqdm=True) == first
    other = MoreRedTrainer(**morered_config(dataset, optim={"eval_batch_size": 8}))
    second = other.validate("val", disable_tqdm=True)
    assert second["noise_mse"]["metric"] == pytest.approx(first["noise_mse"]["metric"], rel=1e-4)
    errors, _ = trainer.monitor.validation(trainer.val_loader.dataset)
    assert {name.split("/")[0] for name in errors} == {
        "denoising_pos_mae", "denoising_pos_cosine", "denoising_pos_explained_variance",
        "denoising_level_mae",
    }  # fmt: skip


def test_relaxations_of_a_validation_are_those_of_a_plain_loop(dataset):
    """One by one, in another batch size; the weights are the averaged ones."""
    optim = {"eval_batch_size": 4, "watch": {"denoising_structures": 3}}
    trainer, logged = MoreRedTrainer(**morered_config(dataset, optim=optim)), {}
    trainer.log = lambda values, split: logged.update(values)
    trainer.validate("val", disable_tqdm=True)
    network = Network(trainer._unwrapped_model.eval())
    denoiser = MoreRedDenoiser(network, trainer.objective.config.levels)
    after = []
    for number in (0, 4, 7):  # of 8, evenly
        data = trainer.val_dataset[number]
        cell, fixed = data.cell[0].double(), data.fixed != 0
        structure = Structure(data.atomic_numbers.long(), data.pos.double(), cell, fixed)
        starts = noisy_starts([structure], 0.1, 0, [number])
        (relaxed,) = relax_structures(starts, denoiser, numbers=[number])
        after.append((relaxed.pos - structure.pos)[~fixed].square().sum(1).mean().sqrt().item())
    assert logged["relaxed_rmsd/sigma=0.10"] == pytest.approx(np.mean(after), rel=1e-3)


def test_prediction_leaves_structures_alone(dataset):
    trainer = MoreRedTrainer(**morered_config(dataset))
    trainer.model.eval()
    batch = next(iter(trainer.val_loader))
    original = batch.pos.clone()
    out = trainer._forward(batch)
    assert torch.equal(batch.pos, original)
    assert out["time"].shape == (len(original), 1)


def test_short_training_lowers_the_loss(dataset):
    optim = {"max_epochs": 20, "lr_initial": 5e-3, "batch_size": 8}
    trainer = MoreRedTrainer(**morered_config(dataset, optim=optim))
    before = trainer.validate("val", disable_tqdm=True)["loss"]["metric"]
    trainer.train(disable_eval_tqdm=True)
    assert trainer.validate("val", disable_tqdm=True)["loss"]["metric"] < 0.9 * before


def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path):
    result = compare(tmp_path, steps=20, kills=2, of="morered")
    assert result.startswith(("1 kill", "2 kills"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {**MODEL, "heads": {"m": {"module": "dens.MoreRedHead"}}}},
         "force_encoding must be false: MoreRed knows no forces (model.backbone.force_encoding)"),
        ({"heads": {"noise": {"module": "dens.NoiseHead"}}}, "model.heads has no head of MoreRed"),
        ({"losses": ("noise", "energy")}, "energy is no target of MoreRed"),
        ({"heads": {"m": {"module": "dens.MoreRedHead", "time": "given"}}},
         "no head predicts time, they predict noise (outputs.time)"),
        ({"heads": {"m": {"module": "dens.MoreRedHead", "time": "told"}}},
         "time must be 'predicted' or 'given', got 'told'"),
        ({"morered": {"max_levels": 3}}, "did you mean max_level?"),
        ({"morered": {"pair_share": 0.5}}, "have no pos_start, which pair_share reads"),
        ({"outputs": {"noise": {"level": "atom"}, "time": {"level": "system"}}},
         "level must be atom, for time (outputs.time.level)"),
    ],
)  # fmt: skip
def test_refusals(dataset, change, message):
    with pytest.raises(ConfigError) as error:
        MoreRedTrainer(**morered_config(dataset, **change))
    assert message in str(error.value)


def test_settings_of_another_method_are_refused(dataset):
    config = morered_config(dataset)
    config["optim"] = config.pop("optimizer")
    with pytest.raises(ConfigError, match=r"which trainer = 'dens\.DeNSTrainer' would ignore"):
        settle({**config, "trainer": "dens.DeNSTrainer"}, DeNSTrainer)
    del config["optim"]["morered"]
    with pytest.raises(ConfigError, match=r"optim\.morered is missing"):
        settle({**config, "trainer": "dens.MoreRedTrainer"}, MoreRedTrainer)


def test_time_of_a_structure_is_the_mean_over_free_atoms(dataset):
    trainer = MoreRedTrainer(**morered_config(dataset))
    batch = next(iter(trainer.val_loader))
    values = torch.arange(len(batch.pos), dtype=torch.float64)
    found = mean_over_free(values, batch)
    for i, value in enumerate(found):
        assert value == values[(batch.batch == i) & (batch.fixed == 0)].mean()


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("noise_mse", [0.5, 0.4, 0.6], [0.5, 0.4]),
        ("loss", [0.5, 0.4, 0.6], [0.5, 0.4]),
        ("time_mae", [0.5, 0.4, 0.6], [0.5, 0.4]),
        ("forces_cosine_similarity", [0.5, 0.4, 0.6], [0.5, 0.6]),
    ],
)
def test_the_best_checkpoint_is_of_the_lowest_error(dataset, metric, values, best):
    """fairchem takes the highest of all metrics whose names lack "mae"."""
    trainer, saved = MoreRedTrainer(**morered_config(dataset)), []
    trainer.best_val_metric = 1e9 if "mae" in metric else -1.0  # as fairchem begins
    trainer.save = lambda metrics, **_: saved.append(metrics[metric]["metric"])
    for value in values:
        trainer.update_best(metric, {metric: {"metric": value}})
    assert saved == best
    assert trainer.best_val_metric == best[-1]
