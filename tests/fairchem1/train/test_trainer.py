"""Test the DeNS trainer: one step against the formulas, metrics, errors, stock evaluation."""

import pytest
import torch
from helpers.loops import loss_by_loop, one_step
from helpers.structures import make_batch
from helpers.trainers import DENS, STOCK_MODEL, trainer_config, write_dataset

from dens.fairchem1 import DeNSMixin, DeNSTrainer
from dens.settings import ConfigError

LADDER = {"sigma": None, "sigma_low": 0.02, "sigma_high": 0.2, "num_sigmas": 3}
RECIPES = {
    "joint": {},
    "separate": {"reduction": "separate"},
    "all atoms": {"corrupt_ratio": None},
    "fixed too": {"corrupt_fixed_atoms": True},
    "fixed alone": {"corrupt_fixed_atoms": "only", "reduction": "separate"},
    "ladder": LADDER,
    "whole batch": {"granularity": "batch", "prob": 1.0},
    "never": {"prob": 0.0},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_equals_the_formula(new_trainer, recipe, seed):
    trainer = new_trainer(dens={**DENS, **recipe}, seed=seed)
    batch = make_batch(5, seed)
    out, loss = one_step(trainer, batch)
    assert loss.item() == pytest.approx(loss_by_loop(trainer, out, batch), rel=1e-5)
    if trainer.dens.prob > 0:
        assert batch.noise_mask.any()
    loss.backward()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_loss_does_not_depend_on_the_order_of_structures(new_trainer):
    trainer = new_trainer()
    batch = make_batch(5)
    out, loss = one_step(trainer, batch)
    order = torch.tensor([3, 0, 4, 2, 1])
    atoms = torch.cat([torch.where(batch.batch == s)[0] for s in order])
    other = batch.clone()
    other.natoms = batch.natoms[order]
    other.batch = torch.repeat_interleave(torch.arange(5), other.natoms)
    for name in ("pos", "fixed", "forces", "noise", "noise_mask", "noise_forces", "atomic_numbers"):
        other[name] = batch[name][atoms]
    for name in ("energy", "sigma", "cell"):
        other[name] = batch[name][order]
    out = {k: v[order] if len(v) == 5 else v[atoms] for k, v in out.items()}
    assert trainer._compute_loss(out, other).item() == pytest.approx(loss.item(), rel=1e-6)


def test_stock_loss_on_clean_batches_and_in_evaluation(new_trainer):
    """Without corruption the loss equals fairchem's, in training and in evaluation."""
    trainer = new_trainer(dens={**DENS, "prob": 0.0})
    batch = make_batch(4)
    out, loss = one_step(trainer, batch)
    reference = super(DeNSMixin, trainer)._compute_loss(out, batch)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)

    trainer = new_trainer(dens={**DENS, "prob": 1.0})
    trainer.model.eval()
    batch = make_batch(4)
    before = batch.pos.clone()
    out = trainer._forward(batch)
    assert torch.equal(batch.pos, before)
    assert "noise_mask" not in batch
    assert set(out) == {"energy", "forces"}
    reference = super(DeNSMixin, trainer)._compute_loss(out, batch)
    assert torch.equal(trainer._compute_loss(out, batch), reference)


def test_a_short_training_with_an_automatic_clean_end_is_the_baseline(dataset):
    """Two epochs of a few structures: weights are those of prob: 0, and not those of DeNS."""
    found = []
    for settings in ({"prob": 0.0}, {"clean_end": "auto"}, {}):
        trainer = DeNSTrainer(**trainer_config(dataset, dens={**DENS, **settings}))
        trainer.train(disable_eval_tqdm=True)
        found.append(trainer.model.state_dict())
    baseline, short, dens = found
    assert all(torch.equal(short[name], value) for name, value in baseline.items())
    assert not all(torch.equal(dens[name], value) for name, value in baseline.items())


def test_corruption_follows_seed_and_step(new_trainer):
    trainer = new_trainer(dens={**DENS, "prob": 1.0})

    def noise(step):
        batch = make_batch(3)
        one_step(trainer, batch, step)
        return batch.noise

    first = noise(1)
    assert torch.equal(first, noise(1))
    assert not torch.equal(first, noise(2))


def test_metrics_keep_forces_and_noise_apart(new_trainer):
    trainer = new_trainer(dens={**DENS, "prob": 0.5})
    for step in range(1, 20):  # a batch with both kinds
        batch = make_batch(4)
        out, _ = one_step(trainer, batch, step)
        corrupted = batch.sigma > 0
        if corrupted.any() and not corrupted.all():
            break
    metrics = trainer._compute_metrics(out, batch, trainer.evaluator, {})
    value = {name: m["metric"] for name, m in metrics.items()}
    of_atom = corrupted[batch.batch]
    error = (out["forces"] * 1.5 - batch.forces).abs()
    free = batch.fixed == 0
    assert value["forces_mae"] == pytest.approx(error[free & ~of_atom].mean().item(), rel=1e-5)
    beside = free & of_atom & ~batch.noise_mask
    assert value["denoising_forces_mae"] == pytest.approx(error[beside].mean().item(), rel=1e-5)
    noise_error = (out["noise"] * 0.1 - batch.noise).abs()[batch.noise_mask]
    assert value["denoising_pos_mae"] == pytest.approx(noise_error.mean().item(), rel=1e-5)
    energy_error = (out["energy"].view(-1) * 2 - 0.5 - batch.energy).abs()
    assert value["energy_mae"] == pytest.approx(energy_error[~corrupted].mean().item(), rel=1e-5)
    expected = energy_error[corrupted].mean().item()
    assert value["denoising_energy_mae"] == pytest.approx(expected, rel=1e-5)
    share = batch.noise_mask.float().mean().item()
    assert value["corrupted_fraction"] == pytest.approx(share)


def test_metrics_of_batches_of_one_kind(new_trainer):
    trainer = new_trainer(dens={**DENS, "prob": 1.0, "corrupt_ratio": None})
    batch = make_batch(3)
    out, _ = one_step(trainer, batch)
    names = set(trainer._compute_metrics(out, batch, trainer.evaluator, {}))
    always = {"corrupted_fraction", "loss_energy", "loss_forces", "loss_noise"}
    assert names == {"denoising_pos_mae", "denoising_energy_mae", *always}
    trainer = new_trainer(dens={**DENS, "prob": 0.0})
    batch = make_batch(3)
    out, _ = one_step(trainer, batch)
    names = set(trainer._compute_metrics(out, batch, trainer.evaluator, {}))
    assert names == {"energy_mae", "forces_mae", "forces_cosine_similarity", *always}


def test_stress_of_corrupted_structures_is_left_out(tmp_path):
    src = write_dataset(tmp_path / "stress", stress=torch.ones(1, 9))
    model = {**trainer_config(src)["model"]}
    model["heads"]["stress"] = {"module": "rank2_symmetric_head", "output_name": "stress"}
    config = trainer_config(src, model=model, dens={**DENS, "prob": 0.5})
    config["outputs"]["stress"] = {"level": "system", "irrep_dim": 2}
    config["loss_functions"].append({"stress": {"fn": "mae", "coefficient": 7}})
    trainer = DeNSTrainer(**config)
    for step in range(1, 20):
        batch = make_batch(4, stress=torch.ones(1, 9))
        out, _ = one_step(trainer, batch, step)
        clean = batch.sigma == 0
        if clean.any() and not clean.all():
            break
    out["stress"][~clean] = float("nan")
    terms = trainer._loss_terms(out, batch)
    expected = 7 * (out["stress"][clean] - 1).abs().mean().item()
    assert terms["stress"].item() == pytest.approx(expected, rel=1e-5)


def test_short_training_lowers_the_loss(new_trainer):
    """The inherited loop trains, validates with EMA and finds a finite best metric."""
    trainer = new_trainer(optim={"max_epochs": 30, "lr_initial": 5.0e-3})
    losses = []
    compute_loss = trainer._compute_loss

    def record(out, batch):
        loss = compute_loss(out, batch)
        if trainer.model.training:
            losses.append(loss.item())
        return loss

    trainer._compute_loss = record
    trainer.train(disable_eval_tqdm=True)
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert trainer.best_val_metric < 1e9


NO_NOISE_HEAD = {**trainer_config("x")["model"]}
NO_NOISE_HEAD = {
    **NO_NOISE_HEAD,
    "heads": {k: v for k, v in NO_NOISE_HEAD["heads"].items() if k != "noise"},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": STOCK_MODEL}, "model.backbone.model = 'equiformer_v2_backbone' would ignore"),
        ({"model": NO_NOISE_HEAD}, "model.heads has no noise head"),
        ({"dens": {**DENS, "prob": 7}}, "prob must be a number in [0, 1], got 7 (optim.dens.prob)"),
        ({"dens": {**DENS, "exclude_md": True}}, "have no md, which exclude_md reads"),
        ({"dens": {**DENS, "max_stress_norm": 1.0}}, "have no stress, which max_stress_norm reads"),
        ({"loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}]}, "must have a term for"),
        (
            {"evaluation_metrics": {"metrics": {"forces": ["mae"]}, "primary_metric": "mae"}},
            "primary_metric must be one of loss, forces_mae, got 'mae'",
        ),
    ],
)
def test_refusals(new_trainer, changes, message):
    with pytest.raises(ConfigError) as error:
        new_trainer(**changes)
    assert message in str(error.value)


def test_data_without_forces_are_refused(dataset):
    config = trainer_config(dataset)
    del config["dataset"]["train"]["key_mapping"]
    with pytest.raises(ConfigError, match=r"have no forces, which DeNS encodes .* they have .*pos"):
        DeNSTrainer(**config)


def test_primary_metric_has_a_default(new_trainer):
    trainer = new_trainer(evaluation_metrics={"metrics": {"forces": ["mae"], "energy": ["mae"]}})
    assert trainer.evaluation_metrics["primary_metric"] == "forces_mae"


def test_mixin_gives_dens_to_another_trainer(dataset):
    from fairchem.core.trainers import OCPTrainer

    class MyTrainer(DeNSMixin, OCPTrainer):
        pass

    optim = {"scheduler": "Null", "max_epochs": 1}
    trainer = MyTrainer(**trainer_config(dataset, optim=optim, dens={**DENS, "prob": 1.0}))
    _, loss = one_step(trainer, make_batch(2))
    assert loss.isfinite()
    assert trainer._dens_parameters
