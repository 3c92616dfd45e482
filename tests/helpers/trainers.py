"""Configs of tiny models and data sets, to build trainers as fairchem does."""

from __future__ import annotations

import copy

import numpy as np

from dens.data.store.lmdb import LmdbWriter
from helpers.stress_settings import learn_stress
from helpers.structures import make_structure

BACKBONE = {
    "use_pbc": True,
    "regress_forces": True,
    "otf_graph": True,
    "max_neighbors": 10,
    "max_radius": 4.0,
    "max_num_elements": 90,
    "num_layers": 1,
    "sphere_channels": 8,
    "attn_hidden_channels": 8,
    "num_heads": 2,
    "attn_alpha_channels": 4,
    "attn_value_channels": 4,
    "ffn_hidden_channels": 8,
    "norm_type": "layer_norm_sh",
    "lmax_list": [2],
    "mmax_list": [2],
    "grid_resolution": 8,
    "edge_channels": 8,
    "attn_activation": "silu",
    "ffn_activation": "silu",
    "use_grid_mlp": True,
    "alpha_drop": 0.0,
    "drop_path_rate": 0.0,
    "weight_init": "uniform",
}

MODEL = {
    "name": "hydra",
    "backbone": {"model": "dens.EquiformerV2Backbone", **BACKBONE},
    "heads": {
        "energy": {"module": "dens.EnergyHead"},
        "forces": {"module": "dens.ForceHead"},
        "noise": {"module": "dens.NoiseHead"},
    },
    "pass_through_head_outputs": True,
    "otf_graph": True,
}

# equivariant to rounding, so that it does not depend on the edges' random frames
EXACT_MODEL = {
    **MODEL,
    "backbone": {**MODEL["backbone"], "use_gate_act": True, "use_grid_mlp": False},
}

STOCK_MODEL = {
    **MODEL,
    "backbone": {"model": "equiformer_v2_backbone", **BACKBONE},
    "heads": {
        "energy": {"module": "equiformerV2_scalar_head"},
        "forces": {"module": "equiformerV2_vector_head"},
    },
}

DENS = {"prob": 0.5, "corrupt_ratio": 0.5, "sigma": 0.1, "denoising_coefficient": 10.0}

OPTIM = {
    "batch_size": 4,
    "eval_batch_size": 4,
    "num_workers": 0,
    "lr_initial": 2.0e-3,
    "optimizer": "AdamW",
    "optimizer_params": {"weight_decay": 1.0e-3},
    "scheduler": "LambdaLR",
    "scheduler_params": {
        "lambda_type": "cosine",
        "warmup_factor": 0.2,
        "warmup_epochs": 1.0,
        "lr_min_factor": 0.01,
    },
    "max_epochs": 2,
    "clip_grad_norm": 100,
    "ema_decay": 0.9,
}

NORMALIZER = {
    "energy": {"mean": -0.5, "stdev": 2.0},
    "forces": {"mean": 0.0, "stdev": 1.5},
}


def write_dataset(path, n: int = 8, seed: int = 0, **fields) -> str:
    """Write an LMDB folder of ``n`` random structures, with the field names of data on disk."""
    rng = np.random.default_rng(seed)
    with LmdbWriter(path) as writer:
        for i in range(n):
            data = make_structure(rng, (2, 2, 2), sid=i, **fields)
            data.y, data.force = data.energy, data.forces
            del data.energy, data.forces
            writer.write(data)
    return str(path)


def file_config(base: dict, **sections) -> dict:
    """Make the config that a file has of the arguments of a trainer from `trainer_config`."""
    kept = ("model", "outputs", "loss_functions", "evaluation_metrics")
    config = {"trainer": "dens.DeNSTrainer", "optim": base["optimizer"]}
    return {**config, **{name: base[name] for name in kept}, **sections}


def trainer_config(src: str, *, dens=None, model=None, optim=None, **sections) -> dict:
    """Return the keyword arguments with which fairchem builds a trainer."""
    config = {
        "task": {},
        "model": model or MODEL,
        "outputs": {
            "energy": {"level": "system"},
            "forces": {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True},
        },
        "dataset": {
            "train": {
                "src": src,
                "format": "lmdb",
                "key_mapping": {"y": "energy", "force": "forces"},
                "transforms": {"normalizer": NORMALIZER},
            },
            "val": {"src": src},
        },
        "optimizer": {**OPTIM, "dens": dens or DENS, **(optim or {})},
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 2}},
            {"forces": {"fn": "l2mae", "coefficient": 100}},
        ],
        "evaluation_metrics": {
            "metrics": {"energy": ["mae"], "forces": ["mae", "cosine_similarity"]},
            "primary_metric": "forces_mae",
        },
        "identifier": "",
        "local_rank": 0,
        "is_debug": True,
        "cpu": True,
        "seed": 0,
    }
    config = copy.deepcopy({**config, **sections})
    if "energy_and_forces" in config["model"]["heads"]:  # of a function and its gradient
        normalizer = config["dataset"]["train"]["transforms"]["normalizer"]
        normalizer["forces"]["stdev"] = normalizer["energy"]["stdev"]
    learn_stress(config)
    return config


def morered_config(
    src: str, *, heads=None, morered=None, losses=("noise", "time"), optim=None, **sections
) -> dict:
    """Return the keyword arguments with which fairchem builds a MoreRed trainer."""
    backbone = {**EXACT_MODEL["backbone"], "force_encoding": False}
    heads = heads or {"morered": {"module": "dens.MoreRedHead"}}
    config = trainer_config(
        src,
        model={**EXACT_MODEL, "backbone": backbone, "heads": heads},
        outputs={name: {"level": "atom"} for name in losses},
        loss_functions=[{name: {"fn": "mse", "coefficient": 0.9}} for name in losses],
        evaluation_metrics={"metrics": {name: ["mse"] for name in losses}},
        dataset={"train": {"src": src, "format": "lmdb"}, "val": {"src": src}},
    )
    del config["optimizer"]["dens"]
    config["optimizer"] |= {"morered": morered or {}, **(optim or {})}
    return {**config, **copy.deepcopy(sections)}
