"""Configs of the authors' repository and of fairchem 1.10 are translated and train."""

import copy
import logging

import pytest
import torch
from helpers.structures import make_batch
from helpers.trainers import BACKBONE, OPTIM, trainer_config

from dens.fairchem1 import DeNSTrainer
from dens.fairchem1.config.translate import translate_model, translate_optim
from dens.settings import ConfigError

PARAMS = {"prob": 0.5, "fixed_noise_std": True, "std": 0.1, "corrupt_ratio": 0.25}
FOREIGN = {
    "use_denoising_pos": True,
    "denoising_pos_params": PARAMS,
    "denoising_pos_coefficient": 10,
}


def foreign(params=None, **changes) -> dict:
    new = {**FOREIGN, "denoising_pos_params": {**PARAMS, **(params or {})}, **changes}
    return {k: v for k, v in new.items() if v is not None}


BASE = {
    "prob": 0.5,
    "denoising_coefficient": 10,
    "sigma": 0.1,
    "corrupt_ratio": 0.25,
    "corrupt_fixed_atoms": False,
    "granularity": "batch",
    "reduction": "joint",
    "exclude_md": "if_marked",
}
LADDER = {"std_low": 0.01, "std_high": 0.1, "num_steps": 50}


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        (foreign(), BASE),
        (foreign(use_denoising_pos=False), {**BASE, "prob": 0.0}),
        (foreign({"all_atoms": True}), {**BASE, "corrupt_fixed_atoms": True}),
        (foreign({"strict_max_ratio": 0.4}), {**BASE, "strict_max_ratio": 0.4}),
        # the level that fixed_noise_std does not choose is ignored, as in both repositories
        (foreign(LADDER), BASE),
        (
            foreign({**LADDER, "fixed_noise_std": False}),
            {
                **{k: v for k, v in BASE.items() if k != "sigma"},
                "sigma_low": 0.01,
                "sigma_high": 0.1,
                "num_sigmas": 50,
            },
        ),
    ],
)
def test_settings(optim, expected):
    assert translate_optim({"lr_initial": 1, **optim}) == {"lr_initial": 1, "dens": expected}


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (foreign(dens={}), "optim.dens and the older form optim.use_denoising_pos are both given"),
        (foreign(denoising_pos_coefficient=None), "optim.denoising_pos_coefficient is missing"),
        (foreign(use_denoising_pos="yes"), "optim.use_denoising_pos must be true or false"),
        (foreign({"stdd": 1}), "unknown key stdd = 1 (optim.denoising_pos_params.stdd)"),
        (foreign({"sigma": 1}), "unknown key sigma = 1 (optim.denoising_pos_params.sigma)"),
        (foreign({"fixed_noise_std": 1}), "denoising_pos_params.fixed_noise_std must be true or f"),
        (foreign(denoising_pos_params=3), "optim.denoising_pos_params must be a mapping, got 3"),
    ],
)
def test_bad_settings(optim, message):
    with pytest.raises(ConfigError) as error:
        translate_optim(optim)
    assert message in str(error.value)


FAIRCHEM_MODEL = {
    "name": "hydra",
    "backbone": {
        "model": "equiformer_v2_dens_backbone",
        **BACKBONE,
        "use_force_encoding": True,
        "use_noise_schedule_sigma_encoding": False,
    },
    "heads": {
        "energy": {"module": "eqV2_DeNS_scalar_head", "use_denoising": True},
        "forces": {"module": "eqV2_DeNS_vector_head"},
        "stress": {"module": "dens_rank2_symmetric_head", "use_denoising": False},
    },
}


def test_model_of_fairchem():
    model = translate_model(FAIRCHEM_MODEL)
    assert model["backbone"] == {
        "model": "dens.EquiformerV2Backbone",
        **BACKBONE,
        "force_encoding": True,
        "sigma_encoding": False,
    }
    assert model["heads"] == {
        "energy": {"module": "dens.EnergyHead"},
        "forces": {"module": "dens.ForceHead"},
        "noise": {"module": "dens.NoiseHead"},
        "stress": {"module": "rank2_symmetric_head"},
    }
    assert FAIRCHEM_MODEL["backbone"]["model"] == "equiformer_v2_dens_backbone"
    FAIRCHEM_MODEL["heads"]["energy"]["use_denoising"] = False
    with pytest.raises(ConfigError, match="use_denoising: false has no equivalent"):
        translate_model(FAIRCHEM_MODEL)
    FAIRCHEM_MODEL["heads"]["energy"]["use_denoising"] = True


def one_step(trainer):
    trainer.model.train()
    trainer.step, trainer.epoch = 1, 0.5
    batch = make_batch(3)
    loss = trainer._compute_loss(trainer._forward(batch), batch)
    loss.backward()
    assert loss.isfinite()
    assert batch.noise_mask.any()


def test_config_of_fairchem_trains_with_one_notice(dataset, caplog):
    config = trainer_config(dataset)
    config["model"] = {
        **{k: v for k, v in FAIRCHEM_MODEL.items() if k != "heads"},
        "heads": {k: v for k, v in FAIRCHEM_MODEL["heads"].items() if k != "stress"},
        "pass_through_head_outputs": True,
    }
    config["optimizer"] = {**copy.deepcopy(OPTIM), **foreign({"prob": 1.0})}
    with caplog.at_level(logging.WARNING):
        trainer = DeNSTrainer(**config)
    notices = [r.message for r in caplog.records if "older form" in r.message]
    assert len(notices) == 1
    assert "optim:\n  dens:\n    prob: 1.0\n    denoising_coefficient: 10" in notices[0]
    assert "use_denoising_pos" not in trainer.config["optim"]
    assert trainer.dens.granularity == "batch"
    one_step(trainer)


def test_config_of_the_authors_trains(dataset):
    """Their layout: a flat model, data sets as a list, losses and normalisers in old places."""
    dataset_config = {
        "src": dataset,
        "normalize_labels": True,
        "target_mean": -0.5,
        "target_std": 2.0,
        "grad_target_mean": 0.0,
        "grad_target_std": 1.5,
    }
    settings = {
        **copy.deepcopy(OPTIM),
        **foreign({"prob": 1.0, "std_low": 0.0, "std_high": 0.0, "num_steps": 0}),
        "force_coefficient": 100,
        "energy_coefficient": 2,
        "loss_energy": "mae",
        "loss_force": "l2mae",
    }
    trainer = DeNSTrainer(
        task={
            "dataset": "trajectory_lmdb_v2",
            "grad_input": "atomic forces",
            "train_on_free_atoms": True,
            "eval_on_free_atoms": True,
        },
        model={
            "name": "dens.EquiformerV2DeNS",
            **BACKBONE,
            "use_force_encoding": True,
            "use_noise_schedule_sigma_encoding": False,
        },
        outputs={},
        dataset=[dataset_config, {"src": dataset}],
        optimizer=settings,
        loss_functions={},
        evaluation_metrics={},
        identifier="",
        local_rank=0,
        is_debug=True,
        cpu=True,
        seed=0,
    )
    assert [name for name, _ in trainer.loss_functions] == ["energy", "forces"]
    assert [info["coefficient"] for _, info in trainer.loss_functions] == [2, 100]
    assert torch.allclose(trainer.normalizers["forces"].rmsd, torch.tensor(1.5))
    assert trainer.evaluation_metrics["primary_metric"] == "forces_mae"
    one_step(trainer)
