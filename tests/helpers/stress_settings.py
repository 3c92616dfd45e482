"""Settings with which a trainer learns the stress: in two parts, as the recipes, or by gradient."""

from __future__ import annotations

import copy

from torch_geometric.data import Data

PARTS = {"stress_isotropic": {"irrep_dim": 0}, "stress_anisotropic": {"irrep_dim": 2}}
DECOMPOSE = {"tensor": "stress", "rank": 2, "decomposition": PARTS}
SCALES = {
    "stress_isotropic": {"mean": 0.02, "stdev": 0.1},
    "stress_anisotropic": {"mean": 0.0, "stdev": 0.03},
    "stress": {"mean": 0.0, "stdev": 2.0},  # as a gradient: that of the energy
}
WEIGHTS = {"stress_isotropic": 5.0, "stress_anisotropic": 7.0, "stress": 6.0}
STRESS_HEAD = {"module": "dens.StressHead"}
STOCK_STRESS_HEAD = {
    "module": "rank2_symmetric_head",
    "decompose": True,
    "use_source_target_embedding": True,
}


def predicts_parts(model: dict) -> bool:
    """Tell whether a ``model`` section has a head for both parts of the stress."""
    head = model["heads"].get("stress", {})
    return head.get("module") == STRESS_HEAD["module"] or head.get("decompose", False)


def learn_stress(config: dict) -> None:
    """Add the stress to the arguments of a trainer whose model predicts it; else do nothing."""
    if predicts_parts(config["model"]):
        names, output = list(PARTS), {"decomposition": copy.deepcopy(PARTS)}
    elif config["model"].get("backbone", {}).get("regress_stress"):
        names, output = ["stress"], {"irrep_dim": 2}
    else:
        return
    transforms = config["dataset"]["train"]["transforms"]
    if "decomposition" in output:
        transforms["decompose_tensor"] = copy.deepcopy(DECOMPOSE)
    transforms["normalizer"] |= {name: dict(SCALES[name]) for name in names}
    config["outputs"]["stress"] = {"level": "system", **output}
    config["loss_functions"] += [{n: {"fn": "mae", "coefficient": WEIGHTS[n]}} for n in names]
    config["evaluation_metrics"]["metrics"]["stress"] = ["mae"]


def decomposed(data: Data) -> Data:
    """Add both parts of the stress to a structure, as the transform of the settings does."""
    from fairchem.core.modules.transforms import decompose_tensor

    return decompose_tensor(data, DECOMPOSE)
