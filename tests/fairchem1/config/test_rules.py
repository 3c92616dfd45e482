"""Configs whose DeNS settings do not fit the rest are refused before anything is built."""

import copy

import pytest
from helpers.backbones import model_of
from helpers.stress_settings import STOCK_STRESS_HEAD, STRESS_HEAD
from helpers.trainers import BACKBONE, DENS, MODEL, STOCK_MODEL, file_config, trainer_config

from dens.fairchem1.backbones.families import ESEN
from dens.fairchem1.config.settle import settle
from dens.settings import ConfigError


def config(**changes) -> dict:
    """A config as its YAML gives it; ``None`` removes a section."""
    found = file_config(trainer_config("nowhere"), **copy.deepcopy(changes))
    return {k: v for k, v in found.items() if v is not None}


def optim(**changes) -> dict:
    base = trainer_config("nowhere")["optimizer"]
    return {k: v for k, v in {**base, **changes}.items() if v is not None}


FOREIGN = {
    "use_denoising_pos": True,
    "denoising_pos_params": {"prob": 0.5, "fixed_noise_std": True, "std": 0.1},
    "denoising_pos_coefficient": 10,
}


def without_head(name) -> dict:
    return {**MODEL, "heads": {k: v for k, v in MODEL["heads"].items() if k != name}}


def with_stress(head, model=MODEL) -> dict:
    return {**model, "heads": {**model["heads"], "stress": head}}


def test_good_configs_pass():
    settle(config())
    settle(config(trainer="dens"))
    settle(config(optim=optim(dens=None, **FOREIGN), model=without_head("noise")))
    settle(config(trainer="equiformerv2_forces", model=STOCK_MODEL, optim=optim(dens=None)))
    settle(config(model={"name": "dens.EquiformerV2DeNS", **BACKBONE}))
    settle(config(model=with_stress(STOCK_STRESS_HEAD), gp_gpus=1))
    settle(config(model=with_stress(STRESS_HEAD), gp_gpus=2))
    # switched off, DeNS needs nothing of the model
    settle(config(model=STOCK_MODEL, optim=optim(dens={**DENS, "prob": 0})))


BAD = [
    ({"trainer": "equiformerv2_forces"}, "trainer = 'equiformerv2_forces' would ignore"),
    ({"trainer": None}, "trainer = 'ocp' would ignore"),
    (
        {"trainer": "forces", "optim": optim(dens=None, **FOREIGN)},
        "optim holds DeNS settings, which trainer = 'forces' would ignore",
    ),
    ({"trainer": "dense"}, "trainer = 'dense' is not known"),
    ({"optim": optim(dens=None)}, "optim.dens is missing"),
    ({"optim": optim(dens={**DENS, "sigma": -1})}, "sigma must be a number > 0, or null, got -1"),
    ({"optim": optim(**FOREIGN)}, "optim.dens and the older form optim.use_denoising_pos are both"),
    ({"model": STOCK_MODEL}, "model.backbone.model = 'equiformer_v2_backbone' would ignore"),
    ({"model": without_head("noise")}, "model.heads has no noise head"),
    (
        {"model": {"name": "equiformer_v2", **BACKBONE}},
        "model.name = 'equiformer_v2' would ignore optim.dens",
    ),
    (
        {"model": {**MODEL, "backbone": {"model": "dens.Nope"}}},
        "model.backbone.model = 'dens.Nope' is not known",
    ),
    (
        {"model": {**MODEL, "heads": {"noise": {}}}},
        "model.heads.noise.module must be the name of a model class, got None",
    ),
    ({"outputs": {"energy": {"level": "system"}}}, "outputs must have forces, got energy"),
    (
        {"loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}]},
        "loss_functions must have a term forces, which the denoising loss extends, got energy",
    ),
    (
        {"loss_functions": [{"forces": {"fn": "mae", "coefficient": 1, "reduction": "sum"}}]},
        "loss_functions.forces.reduction must be mean",
    ),
    (
        {"evaluation_metrics": {"metrics": {"forces": ["mae"]}, "primary_metric": "mae"}},
        "primary_metric must be one of loss, forces_mae, got 'mae'",
    ),
    (
        {"model": model_of(ESEN), "gp_gpus": 2},
        "--gp-gpus needs EquiformerV2: fairchem-core 1.10 does not split the graphs of dens.ESENB",
    ),
    (
        {"model": with_stress(STOCK_STRESS_HEAD), "gp_gpus": 2},
        "--gp-gpus needs dens.StressHead: fairchem-core 1.10 does not split the graphs of rank2_s",
    ),
    (
        {
            "trainer": "equiformerv2_forces",
            "model": with_stress(STOCK_STRESS_HEAD, STOCK_MODEL),
            "optim": optim(dens=None),
            "gp_gpus": 2,
        },
        "split the graphs of rank2_symmetric_head over ranks (model.heads.stress.module)",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        settle(config(**changes))
    assert message in str(error.value)


def test_every_mistake_has_its_line():
    changes = {
        "optim": optim(dens={**DENS, "sigma": -1}),
        "model": without_head("noise"),
        "outputs": {"energy": {"level": "system"}},
        "evaluation_metrics": {"metrics": {"forces": ["mae"]}, "primary_metric": "mae"},
    }
    with pytest.raises(ConfigError) as error:
        settle(config(**changes))
    lines = str(error.value).splitlines()
    starts = ("sigma must", "model.heads has no", "outputs must", "evaluation_metrics.primary")
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
