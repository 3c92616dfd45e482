"""The config of a checkpoint as settings of the models of dens, or of stock EquiformerV2."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.models.base import HydraModel
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone

from dens.fairchem1.config.translate import translate_model

BACKBONE, NOISE_HEAD = "dens.EquiformerV2Backbone", "dens.NoiseHead"
_TO_DENS = {
    "equiformer_v2_backbone": BACKBONE,
    "equiformerV2_scalar_head": "dens.EnergyHead",
    "equiformer_v2_energy_head": "dens.EnergyHead",
    "equiformerV2_vector_head": "dens.ForceHead",
    "equiformer_v2_force_head": "dens.ForceHead",
    "dens_equiformer_v2_backbone": BACKBONE,
    "dens_energy_head": "dens.EnergyHead",
    "dens_force_head": "dens.ForceHead",
    "dens_noise_head": NOISE_HEAD,
}
_TO_STOCK = {
    BACKBONE: "equiformer_v2_backbone",
    "dens.EnergyHead": "equiformerV2_scalar_head",
    "dens.ForceHead": "equiformerV2_vector_head",
}
_STOCK_KEYS = set(inspect.signature(EquiformerV2Backbone.__init__).parameters) - {"self"}
_OUR_KEYS = {"force_encoding", "sigma_encoding"}
_KNOWN_AS = {
    "use_force_encoding": "force_encoding",
    "use_noise_schedule_sigma_encoding": "sigma_encoding",
}


def model_section(config: Any, where: str, *, foreign: bool, noise: bool) -> dict[str, Any] | None:
    """The ``model`` section of a checkpoint's config, for the hydra model with classes of dens.

    Args:
        config: the config in the file, or None.
        where: the name of the file.
        foreign: whether backbone and heads are those of fairchem 1.10's DeNS.
        noise: whether a model without heads in its config has a noise head.

    Raises:
        ValueError: a model that dens has no class for.
    """
    if not isinstance(config, Mapping) or not config.get("model"):
        return None
    model = copy.deepcopy(config["model"])
    if isinstance(model, str):  # the oldest form: a name, and the settings beside it
        model = {"name": model, **copy.deepcopy(config.get("model_attributes") or {})}
    if model.get("name") != "hydra":
        model = _as_hydra(model, noise)
    elif foreign:
        model = translate_model(model)
    if "backbone" not in model or "heads" not in model:
        raise ValueError(f"{where}: its config has no backbone or no heads (config.model)")
    model = dens_section(model)
    if model["backbone"]["model"] != BACKBONE:
        raise ValueError(
            f"{where} holds a model of another kind: expected EquiformerV2, got "
            f"{model['backbone']['model']!r} (config.model.backbone.model)"
        )
    model.pop("finetune_config", None)  # the weights are in the file
    return model


def dens_section(model: Mapping[str, Any], **backbone: Any) -> dict[str, Any]:
    """A ``model`` section with the classes of dens, where it has one for fairchem's own.

    ``backbone`` are further settings of the backbone.
    """
    model = copy.deepcopy(dict(model))
    model["backbone"].update(backbone)
    heads = ((head, "module") for head in model["heads"].values())
    for section, key in ((model["backbone"], "model"), *heads):
        section[key] = _TO_DENS.get(section[key], section[key])
    return model


def _as_hydra(model: Mapping[str, Any], noise: bool) -> dict[str, Any]:
    settings = {_KNOWN_AS.get(key, key): value for key, value in model.items()}
    keys = _STOCK_KEYS | _OUR_KEYS
    heads = {"energy": "dens.EnergyHead", "forces": "dens.ForceHead"}
    if noise:
        heads["noise"] = NOISE_HEAD
    return {
        "name": "hydra",
        "backbone": {"model": BACKBONE, **{k: v for k, v in settings.items() if k in keys}},
        "heads": {name: {"module": module} for name, module in heads.items()},
        "pass_through_head_outputs": True,
        "otf_graph": settings.get("otf_graph", True),
    }


def build(model: Mapping[str, Any]) -> HydraModel:
    """The model of a ``model`` section, with random weights."""
    setup_imports()
    model = copy.deepcopy(dict(model))
    return registry.get_model_class(model.pop("name"))(**model)


def trainable_names(model: Mapping[str, Any]) -> set[str]:
    """The names of the weights that training changes."""
    return {name for name, weight in build(model).named_parameters() if weight.requires_grad}


def stock_section(model: Mapping[str, Any]) -> dict[str, Any]:
    """A ``model`` section of dens with fairchem's own classes, without noise head and encoding."""
    model = copy.deepcopy(dict(model))
    backbone = {k: v for k, v in model["backbone"].items() if k in _STOCK_KEYS}
    backbone["model"] = _TO_STOCK[model["backbone"]["model"]]
    heads = {}
    for name, head in model["heads"].items():
        if head["module"] != NOISE_HEAD:
            heads[name] = {**head, "module": _TO_STOCK.get(head["module"], head["module"])}
    return {**model, "backbone": backbone, "heads": heads}
