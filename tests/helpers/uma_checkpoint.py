"""Write a checkpoint with random weights in the layout of UMA: experts, heads by data set."""

from __future__ import annotations

from pathlib import Path

import hydra
import torch
from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint

from helpers.stock2 import MOE, make_config

REFERENCES = [0.0] * 8 + [-2.0] + [0.0] * 20 + [-3.0] + [0.0] * 60
RMSD = 1.423


def write_uma(path: Path) -> Path:
    """Write the checkpoint, with heads for oc20 and omat."""
    src = {"oc20": path.parent, "omat": path.parent}
    backbone = {**MOE, "direct_forces": False, "regress_stress": True}
    config = make_config(path.parent, src, dens=None, backbone=backbone)
    unit = config["runner"]["train_eval_unit"]
    escn = "fairchem.core.models.uma"
    unit["model"]["heads"] = {
        "energyandforcehead": {
            "module": f"{escn}.escn_moe.DatasetSpecificSingleHeadWrapper",
            "head_cls": f"{escn}.escn_md.MLP_EFS_Head",
            "head_kwargs": {"wrap_property": False},
            "dataset_names": ["oc20", "omat"],
            "wrap_property": True,
        }
    }
    for task in unit["tasks"]:
        task["normalizer"]["rmsd"] = RMSD
        if task["property"] == "energy":
            task["element_references"] = {
                "_target_": "fairchem.core.modules.normalization.element_references."
                "ElementReferences",
                "element_references": {"_target_": "torch.DoubleTensor", "_args_": [REFERENCES]},
            }
    torch.manual_seed(0)
    model = hydra.utils.instantiate(unit["model"])
    torch.save(
        MLIPInferenceCheckpoint(
            model_config=unit["model"],
            model_state_dict=model.state_dict(),
            ema_state_dict=None,
            tasks_config=unit["tasks"],
        ),
        path,
    )
    return path
