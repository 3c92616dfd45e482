"""Values in all sections of a config: strings for numbers, and values that a run would die on."""

import pytest
import torch
from helpers.settled import config, errors

from dens.fairchem1.config.settle import settle

NORMALIZER = "dataset.train.transforms.normalizer"
OURS, STOCK = "dens.DeNSTrainer", "equiformerv2_forces"
NUMBERS = [  # every key whose value is a number, section by section
    *(f"optim.{key}" for key in ("lr_initial", "max_epochs", "clip_grad_norm", "ema_decay")),
    *(f"optim.{key}" for key in ("batch_size", "eval_batch_size", "num_workers", "eval_every")),
    *(f"optim.{key}" for key in ("checkpoint_every", "weight_decay", "max_skipped_steps")),
    *("optim.grad_accumulation_steps", "optim.force_coefficient", "optim.energy_coefficient"),
    *(f"optim.optimizer_params.{key}" for key in ("weight_decay", "eps")),
    *(f"optim.scheduler_params.{key}" for key in ("warmup_factor", "warmup_epochs")),
    *(f"optim.scheduler_params.{key}" for key in ("lr_min_factor", "decay_rate")),
    *("loss_functions.0.energy.coefficient", "loss_functions.1.forces.coefficient"),
    *(f"model.backbone.{key}" for key in ("num_layers", "sphere_channels", "num_heads")),
    *(f"model.backbone.{key}" for key in ("max_radius", "max_neighbors", "max_num_elements")),
    *(f"model.backbone.{key}" for key in ("attn_hidden_channels", "attn_alpha_channels")),
    *(f"model.backbone.{key}" for key in ("attn_value_channels", "ffn_hidden_channels")),
    *(f"model.backbone.{key}" for key in ("edge_channels", "grid_resolution", "alpha_drop")),
    *(f"model.backbone.{key}" for key in ("drop_path_rate", "proj_drop", "avg_num_nodes")),
    *("model.backbone.avg_degree", "model.backbone.num_distance_basis"),
    *("model.backbone.num_sphere_samples", "outputs.energy.irrep_dim"),
    *(f"dataset.train.{key}" for key in ("first_n", "sample_n", "max_atoms", "seed")),
    *("dataset.val.first_n", "dataset.train.target_mean", "dataset.train.target_std"),
    *(f"{NORMALIZER}.energy.{key}" for key in ("mean", "stdev", "rmsd")),
    *(f"{NORMALIZER}.forces.{key}" for key in ("mean", "stdev")),
    *(f"{NORMALIZER}.fit.{key}" for key in ("batch_size", "num_batches")),
    f"{NORMALIZER}.fit.targets.forces.mean",
    *("task.relaxation_steps", "task.relaxation_fmax", "task.num_relaxation_batches"),
    *(f"task.relax_opt.{key}" for key in ("maxstep", "memory", "damping", "alpha")),
    "logger.log_weight_table",
]
OF_DENS = ("optim.dens.sigma", "optim.dens.prob", "optim.watch.figures_every")


@pytest.mark.parametrize(
    ("key", "trainer"),
    [(key, OURS) for key in (*NUMBERS, *OF_DENS)] + [(key, STOCK) for key in NUMBERS],
)
def test_numbers_must_not_be_strings(key, trainer):
    name = key.rpartition(".")[2]
    found = [line for line in errors((key, "1e-3"), trainer=trainer) if f"{name} must be" in line]
    (line,) = found
    place = key.replace(".0.", ".").replace(".1.", ".")
    assert "got '1e-3', a string; YAML reads 1e-3 as one, write 1.0e-3" in line
    assert line.endswith(f"({place})")


def optim(**changes) -> list:
    return [(f"optim.{key}", value) for key, value in changes.items()]


def backbone(**changes) -> list:
    return [(f"model.backbone.{key}", value) for key, value in changes.items()]


def schedule(**params) -> list:
    return [("optim.scheduler_params", params)]


COSINE = {"lambda_type": "cosine", "warmup_epochs": 1, "warmup_factor": 0.2, "lr_min_factor": 0.01}
BAD = [
    *((optim(eval_every=value), "eval_every must be an integer >= 1") for value in (0, -1, 0.5)),
    (optim(eval_every=None), "eval_every must be an integer >= 1, got None"),
    *((optim(checkpoint_every=value), "checkpoint_every must be an integer") for value in (0, -2)),
    *((optim(batch_size=value), "batch_size must be an integer >= 1") for value in (0, -4, 4.0)),
    (optim(batch_size=True), "batch_size must be an integer >= 1, got True"),
    (optim(eval_batch_size=0), "eval_batch_size must be an integer >= 1, got 0"),
    (optim(num_workers=-1), "num_workers must be an integer >= 0, got -1"),
    (optim(max_epochs=0), "max_epochs must be an integer >= 1, got 0"),
    (optim(max_epochs=1.5), "max_epochs must be an integer >= 1, got 1.5"),
    *((optim(lr_initial=value), "lr_initial must be a number > 0") for value in (0, -1e-3, None)),
    (optim(lr_initial=float("inf")), "lr_initial must be a number > 0, got inf"),
    *((optim(ema_decay=value), "ema_decay must be a number in (0, 1)") for value in (0, 1, 1.5)),
    *((optim(clip_grad_norm=value), "clip_grad_norm must be a number > 0") for value in (0, -1)),
    (optim(grad_accumulation_steps=0), "grad_accumulation_steps must be an integer >= 1, got 0"),
    (optim(load_balancing=True), "load_balancing must be 'atoms', false or null, got True"),
    (optim(optimizer="adamw"), "got 'adamw': did you mean AdamW? (optim.optimizer)"),
    (optim(optimizer="lion"), "optimizer must be one of ASGD, "),
    (optim(optimizer=None), "optimizer must be one of ASGD, "),
    (optim(optimizer="LBFGS", optimizer_params={}), "optim.optimizer = LBFGS with"),
    (optim(optimizer="SparseAdam", optimizer_params={}), "SparseAdam does not support dense"),
    (optim(optimizer_params={"betas": [0.9, 1.5]}), "Invalid beta parameter at index 1: 1.5"),
    (optim(optimizer_params={"betas": [0.9, "0.99"]}), "betas must be a list of numbers, or null"),
    (optim(optimizer_params={"weight_decay": -1}), "Invalid weight_decay value: -1"),
    (optim(optimizer_params={"lr": 1}), "(optim.optimizer_params.lr)"),
    (optim(scheduler="lambdalr"), "got 'lambdalr': did you mean LambdaLR? (optim.scheduler)"),
    (optim(scheduler=None), "(a constant rate is 'Null', in quotes), got None (optim.scheduler)"),
    (optim(scheduler="StepLR", scheduler_params={}), "missing 1 required positional argument"),
    (schedule(**COSINE | {"lambda_type": "cosin"}), "did you mean cosine? (optim.scheduler_params"),
    (schedule(lambda_type="cosine", warmup_epochs=1), "warmup_factor is missing, which a cosine"),
    (schedule(**COSINE | {"lambda_type": "multistep"}), "decay_epochs is"),
    (schedule(**COSINE | {"warmup_epochs": 0}), "warmup_epochs must be a number > 0, got 0"),
    (backbone(lmax_list=[1], mmax_list=[2]), "mmax_list must not be above lmax_list, got [2] and"),
    (backbone(lmax_list=[2], mmax_list=[2, 2]), "lmax_list and mmax_list must be equally long"),
    (backbone(lmax_list=[12]), "lmax_list must be a list of integers from 1 to 11, or null, got"),
    (backbone(lmax_list=2), "lmax_list must be a list of integers from 1 to 11, or null, got 2"),
    (backbone(grid_resolution=4), "grid_resolution must be even and at least 2 (lmax + 1) = 6"),
    (backbone(grid_resolution=9), "grid_resolution must be even and at least 2 (lmax + 1) = 6"),
    *((backbone(max_neighbors=v), "max_neighbors must be an integer >= 1") for v in (0, None, 2.5)),
    *((backbone(max_radius=value), "max_radius must be a number > 0") for value in (0, -1.0)),
    (backbone(num_heads=0), "num_heads must be an integer >= 1, got 0"),
    (backbone(num_layers=0), "num_layers must be an integer >= 1, got 0"),
    (backbone(alpha_drop=1.0), "alpha_drop must be a number in [0, 1), got 1.0"),
    (backbone(norm_type="batch"), "norm_type must be 'layer_norm', 'layer_norm_sh' or"),
    (backbone(weight_init="zeros"), "weight_init must be 'normal' or 'uniform', got 'zeros'"),
    (backbone(distance_function="bessel"), "distance_function must be 'gaussian', got 'bessel'"),
    *(
        (backbone(**{key: "gelu"}), f"{key} must be 'silu' or 'scaled_silu', which are the same")
        for key in ("ffn_activation", "attn_activation")
    ),
    (backbone(use_s2_act_attn=True), "use_s2_act_attn must be false"),
    (backbone(use_pbc="no"), "use_pbc must be true or false, got 'no'"),
    ([("loss_functions.0.energy.fn", "maee")], "did you mean mae? (loss_functions.energy.fn)"),
    ([("loss_functions.0.energy.fn", "l2mae")], "fn = 'l2mae' is a loss of vectors, got the targ"),
    ([("loss_functions.1.forces.fn", "per_atom_mae")], "is a loss of energies, got the target for"),
    ([("loss_functions.0.energy", {"fn": "mae"})], "coefficient is missing (loss_functions.energy"),
    ([("loss_functions.0.energy.coefficient", -1)], "coefficient must be a number >= 0, got -1"),
    ([("loss_functions.0.energy.reduction", "max")], "reduction must be 'mean', 'sum' or null"),
    ([("loss_functions.0.stress", {"fn": "mae", "coefficient": 1})], "outputs must have stress"),
    ([("evaluation_metrics.metrics.energy", ["maee"])], "did you mean mae? (evaluation_metrics.m"),
    ([("evaluation_metrics.metrics.energy", "mae")], "energy must be a list of metrics, got 'mae'"),
    (
        [("evaluation_metrics.metrics.stres", ["mae"])],
        "outputs must have stres, got energy, forces",
    ),
    ([("evaluation_metrics.metrics.misc", ["mae"])], "must be one of average_distance_within"),
    ([("evaluation_metrics.metrics", ["mae"])], "metrics must be a mapping of outputs, got ['mae"),
    ([("evaluation_metrics.primary_metric", "forces_mse")], "primary_metric must be one of loss, "),
    ([("outputs.energy.level", "sytem")], "level must be 'atom' or 'system', got 'sytem'"),
    ([("logger.name", "wandbb")], "got 'wandbb': did you mean wandb? (logger.name)"),
    ([("logger", None)], "logger must be one of tensorboard, wandb, wandb_singleton, got None"),
    ([("logger", {"project": "p"})], "got None (logger.name)"),
    ([("logger", "wandb_singleton")], "project is missing, which wandb_singleton needs"),
    ([("dataset.train.format", "lmbd")], "did you mean lmdb? (dataset.train.format)"),
    ([("dataset.train.first_n", 0)], "first_n must be an integer >= 1, or null, got 0"),
    ([("dataset.train.sample_n", -3)], "sample_n must be an integer >= 1, or null, got -3"),
    ([("dataset.train.train_split_settings", {"first_n": 0})], "first_n must be an integer >= 1"),
    ([("dataset.train.train_split_settings", {"firstn": 3})], "did you mean first_n?"),
    ([("dataset.val.val_split_settings", {"sample_n": 2.5})], "sample_n must be an integer >= 1"),
    ([("dataset.train.train_split_settings", [3])], "train_split_settings must be a mapping"),
    ([(f"{NORMALIZER}.energy.stdev", 0)], "stdev must be a number > 0, or a list of such, got 0"),
    ([(f"{NORMALIZER}.energy", {"mean": 1})], "a normalizer needs mean and rmsd (or stdev), or a"),
    ([("task.relaxation_fmax", 0)], "relaxation_fmax must be a number > 0, got 0"),
]


BAD_FOR_STOCK = [case for case in BAD if not any(value == "dens" for _, value in case[0])]


@pytest.mark.parametrize(
    ("trainer", "changes", "message"),
    [
        pytest.param(trainer, *case, id=f"{trainer}-{case[1][:40]}")
        for trainer, cases in ((OURS, BAD), (STOCK, BAD_FOR_STOCK))
        for case in cases
    ],
)
def test_values_that_a_run_would_die_on_are_refused(trainer, changes, message):
    lines = errors(*changes, trainer=trainer)
    assert len([line for line in lines if message in line]) == 1, lines


GOOD = [
    optim(eval_every=3, checkpoint_every=-1, num_workers=0, ema_decay=None, clip_grad_norm=None),
    optim(optimizer="SGD", optimizer_params={"momentum": 0.9}, lr_initial=1),
    optim(optimizer="Adam", optimizer_params={"betas": [0.9, 0.99], "eps": 1e-9}),
    optim(scheduler="Null"),
    optim(scheduler="CosineAnnealingLR", scheduler_params={"T_max": 10}),
    optim(scheduler="StepLR", scheduler_params={"step_size": 2, "gamma": 0.1}),
    schedule(
        lambda_type="multistep",
        warmup_epochs=1,
        warmup_factor=0.2,
        decay_rate=0.1,
        decay_epochs=[1, 2],
    ),
    backbone(lmax_list=None, mmax_list=None, grid_resolution=None, avg_degree=None),
    backbone(lmax_list=[4], mmax_list=[0], grid_resolution=10),
    [("evaluation_metrics.metrics.misc", ["energy_forces_within_threshold"])],
    [("evaluation_metrics.metrics.forces", ["mae", "forcesx_mae", "magnitude_error"])],
    [("loss_functions.0.energy.fn", "per_atom_mae"), ("loss_functions.1.forces.fn", "mse")],
    [(f"{NORMALIZER}.energy", {"file": "a.pt"})],
    [("logger", "tensorboard")],
]


@pytest.mark.parametrize("trainer", [OURS, STOCK])
@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_other_values_pass(changes, trainer):
    settle(config(*changes, trainer=trainer))


def test_factors_may_be_integers():
    """fairchem takes floats alone."""
    params = {**COSINE, "warmup_factor": 1, "lr_min_factor": 0}
    settled = settle(config(("optim.scheduler_params", params)))["optim"]["scheduler_params"]
    assert [type(settled[key]) for key in ("warmup_factor", "lr_min_factor")] == [float, float]
    assert type(params["warmup_factor"]) is int


def test_settling_draws_no_random_numbers():
    before = torch.get_rng_state()
    settle(config())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_schedule_by_the_validation_needs_validation_data():
    changes = optim(scheduler="ReduceLROnPlateau", scheduler_params={"factor": 0.5})
    settle(config(*changes))
    (line,) = errors(*changes, ("dataset.val", None))
    assert "ReduceLROnPlateau needs validation data" in line
