"""Convert the ``model`` section of a config: to the classes of dens, or to fairchem's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.models.base import HydraModel

from dens.fairchem1.backbones.families import (
    EQUIFORMER_V2,
    FAMILIES,
    TITLES,
    Family,
    family_of_section,
)
from dens.fairchem1.config.translate import translate_model

STRESS_HEAD = "dens.StressHead"
# fairchem's head with the settings in which it can hold the weights of ours; not the reverse
_STOCK_STRESS = {
    "module": "rank2_symmetric_head",
    "decompose": True,
    "use_source_target_embedding": True,
}
_ROWS = [row for family in FAMILIES for row in family.rows]
_TO_DENS = {other: ours for ours, *others in _ROWS for other in others}
_TO_STOCK = {ours: stock for ours, stock, *_ in _ROWS}
NOISE_HEADS = {family.noise_head for family in FAMILIES}
_OUR_KEYS = {"force_encoding", "sigma_encoding"}


def model_section(config: Any, where: str, *, foreign: bool, noise: bool) -> dict[str, Any] | None:
    """Convert a checkpoint's config to a ``model`` section of the hydra model of dens.

    Args:
        config: the config in the file, or None.
        where: the name of the file, for errors.
        foreign: whether backbone and heads are those of fairchem 1.10's DeNS.
        noise: whether to add a noise head where the config lists no heads.

    Returns:
        The section, or None where there is no config.

    Raises:
        ValueError: a model that dens has no class for.
    """
    if not isinstance(config, Mapping) or not config.get("model"):
        return None
    model = copy.deepcopy(config["model"])
    if isinstance(model, str):  # the oldest form: a name, and the settings beside it
        model = {"name": model, **copy.deepcopy(config.get("model_attributes") or {})}
    if model.get("name") != "hydra":
        family = family_of_section(model) or EQUIFORMER_V2
        model = _hydra_section(translate_model(model), noise, family)
    elif foreign:
        model = translate_model(model)
    if "backbone" not in model or "heads" not in model:
        raise ValueError(f"{where}: its config has no backbone or no heads (config.model)")
    model = dens_section(model)
    if family_of_section(model) is None:
        raise ValueError(
            f"{where} holds a model of another kind: expected one of {TITLES}, got "
            f"{model['backbone']['model']!r} (config.model.backbone.model)"
        )
    model.pop("finetune_config", None)  # the weights are in the file
    return model


def dens_section(model: Mapping[str, Any], **backbone: Any) -> dict[str, Any]:
    """Replace fairchem's classes in a ``model`` section by those of dens.

    Args:
        model: the section of a hydra model.
        backbone: further settings of its backbone.
    """
    model = copy.deepcopy(dict(model))
    model["backbone"].update(backbone)
    heads = ((head, "module") for head in model["heads"].values())
    for section, key in ((model["backbone"], "model"), *heads):
        section[key] = _TO_DENS.get(section[key], section[key])
    return model


def _hydra_section(settings: Mapping[str, Any], noise: bool, family: Family) -> dict[str, Any]:
    """Make the section of a hydra model from one flat list of settings."""
    keys = family.stock_defaults.keys() | _OUR_KEYS
    heads = {name: head for name, head in family.heads.items() if noise or name != "noise"}
    return {
        "name": "hydra",
        "backbone": {"model": family.backbone, **{k: v for k, v in settings.items() if k in keys}},
        "heads": {name: {"module": module} for name, module in heads.items()},
        "pass_through_head_outputs": True,
        "otf_graph": settings.get("otf_graph", True),
    }


def stock_section(model: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the classes of dens by fairchem's own; drop noise head and force encoding."""
    model = copy.deepcopy(dict(model))
    keys = family_of_section(model).stock_defaults
    backbone = {k: v for k, v in model["backbone"].items() if k in keys}
    backbone["model"] = _TO_STOCK[model["backbone"]["model"]]
    heads = {}
    for name, head in model["heads"].items():
        if head["module"] == STRESS_HEAD:
            heads[name] = {**head, **_STOCK_STRESS}
        elif head["module"] not in NOISE_HEADS:
            heads[name] = {**head, "module": _TO_STOCK.get(head["module"], head["module"])}
    return {**model, "backbone": backbone, "heads": heads}


def build(model: Mapping[str, Any]) -> HydraModel:
    """Build the model of a ``model`` section, with random weights."""
    setup_imports()
    model = copy.deepcopy(dict(model))
    return registry.get_model_class(model.pop("name"))(**model)


def trainable_names(model: Mapping[str, Any]) -> set[str]:
    """Return the names of the weights that training changes."""
    return {name for name, weight in build(model).named_parameters() if weight.requires_grad}
