"""Configs of tiny models of each backbone, of dens and of fairchem alone."""

from __future__ import annotations

import copy

from dens.fairchem1.backbones.families import EQUIFORMER_V2, ESCN, ESEN, Family
from helpers.stress_settings import STOCK_STRESS_HEAD, STRESS_HEAD
from helpers.trainers import BACKBONE

SHARED = {
    "use_pbc": True,
    "regress_forces": True,
    "otf_graph": True,
    "max_neighbors": 10,
    "max_num_elements": 90,
    "sphere_channels": 8,
    "edge_channels": 8,
}
SETTINGS = {
    EQUIFORMER_V2: BACKBONE,
    ESCN: {
        **SHARED,
        "cutoff": 4.0,
        "num_layers": 2,
        "hidden_channels": 8,
        "lmax_list": [2],
        "mmax_list": [2],
        "num_sphere_samples": 32,
        "distance_resolution": 0.2,
    },
    ESEN: {
        **SHARED,
        "cutoff": 4.0,
        "num_layers": 1,
        "hidden_channels": 8,
        "lmax": 2,
        "mmax": 2,
        "num_distance_basis": 16,
        "act_type": "gate",
        "mlp_type": "spectral",
    },
}
GRADIENT = {"energy_and_forces": "esen_mlp_efs_head"}  # forces that are gradients of the energy


def model_of(family: Family, *, gradient: bool = False, stress: bool = False, **settings) -> dict:
    """Make the ``model`` section of a family's backbone with DeNS."""
    heads = {**GRADIENT, "noise": family.noise_head} if gradient else family.heads
    more = {"direct_forces": False, "use_envelope": True} if gradient else {}
    sections = {name: {"module": module} for name, module in heads.items()}
    if stress and gradient:
        more["regress_stress"] = True
    elif stress:
        sections["stress"] = dict(STRESS_HEAD)
    return {
        "name": "hydra",
        "backbone": {"model": family.backbone, **SETTINGS[family], **more, **settings},
        "heads": sections,
        "pass_through_head_outputs": True,
        "otf_graph": True,
    }


def stock_model_of(model: dict) -> dict:
    """Make the section of the same model with fairchem's own classes, written out by hand."""
    names = {
        "dens.EquiformerV2Backbone": "equiformer_v2_backbone",
        "dens.EnergyHead": "equiformerV2_scalar_head",
        "dens.ForceHead": "equiformerV2_vector_head",
        "dens.ESCNBackbone": "escn_backbone",
        "dens.ESENBackbone": "esen_backbone",
    }
    model = copy.deepcopy(model)
    model["backbone"]["model"] = names[model["backbone"]["model"]]
    model["backbone"].pop("fast", None)
    del model["heads"]["noise"]
    for head in model["heads"].values():
        if head == STRESS_HEAD:
            head.update(STOCK_STRESS_HEAD)
        head["module"] = names.get(head["module"], head["module"])
    return model
