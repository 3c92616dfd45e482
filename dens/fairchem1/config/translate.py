"""Translate the older form of DeNS settings, of the authors' repository and of fairchem 1.10.

Both keep them in ``optim.use_denoising_pos``, ``optim.denoising_pos_params`` and
``optim.denoising_pos_coefficient``. Their names are used
in this module only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from dens.denoising.config import DeNSConfig
from dens.settings import ConfigError, known_keys, unknown_key

_KEYS = ("use_denoising_pos", "denoising_pos_params", "denoising_pos_coefficient")
_PARAMS = (
    *("prob", "fixed_noise_std", "std", "std_low", "std_high", "num_steps", "corrupt_ratio"),
    "all_atoms",
)

_MODELS = {
    "equiformer_v2_dens_backbone": "dens.EquiformerV2Backbone",
    "eqV2_DeNS_scalar_head": "dens.EnergyHead",
    "eqV2_DeNS_vector_head": "dens.ForceHead",
    "dens_rank2_symmetric_head": "rank2_symmetric_head",
    "esen_backbone_dens": "dens.ESENBackbone",
    "esen_linear_force_head_dens": "esen_linear_force_head",
    "esen_mlp_efs_head_dens": "esen_mlp_efs_head",
}
_NOISE_HEADS = {"dens.ESENBackbone": "dens.ESENNoiseHead"}
_BACKBONE_KEYS = {
    "use_force_encoding": "force_encoding",
    "use_noise_schedule_sigma_encoding": "sigma_encoding",
}


def is_foreign(optim: Mapping[str, Any]) -> bool:
    """Tell whether ``optim`` holds DeNS settings in the older form."""
    return any(key in optim for key in _KEYS)


def translate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the sections of a config in which the older form differs, and return them.

    Raises:
        ConfigError: what cannot be translated.
    """
    return {
        "optim": translate_optim(config["optim"]),
        "model": translate_model(config.get("model") or {}),
        "task": translate_task(config.get("task") or {}),
    }


def translate_optim(optim: Mapping[str, Any]) -> dict[str, Any]:
    """Rewrite the older DeNS settings in ``optim`` as ``optim.dens``; keep the other keys.

    Raises:
        ConfigError: both forms at once; a key that neither repository has; a key that is missing.
    """
    given = [key for key in _KEYS if key in optim]
    if "dens" in optim:
        raise ConfigError(
            f"optim.dens and the older form optim.{given[0]} are both given: keep one of them"
        )
    missing = [key for key in _KEYS if key not in optim]
    if missing:
        raise ConfigError(
            f"optim.{missing[0]} is missing beside optim.{given[0]}; the current form is optim.dens"
        )
    rest = {key: value for key, value in optim.items() if key not in _KEYS}
    return {**rest, "dens": _translate_params(optim)}


def _translate_params(optim: Mapping[str, Any]) -> dict[str, Any]:
    where = "optim.denoising_pos_params"
    if not isinstance(optim["denoising_pos_params"], Mapping):
        raise ConfigError(f"{where} must be a mapping, got {optim['denoising_pos_params']!r}")
    params = dict(optim["denoising_pos_params"])
    on, fixed_std = optim["use_denoising_pos"], params.pop("fixed_noise_std", False)
    for key, value in (("use_denoising_pos", on), (f"{where[6:]}.fixed_noise_std", fixed_std)):
        if not isinstance(value, bool):
            raise ConfigError(f"optim.{key} must be true or false, got {value!r}")
    prob = params.pop("prob", 0.0)
    level = {"sigma": params.pop("std", None)}
    ladder = {
        "sigma_low": params.pop("std_low", None),
        "sigma_high": params.pop("std_high", None),
        "num_sigmas": params.pop("num_steps", None),
    }
    params.pop("denoising_pos_coefficient", None)  # both repositories overwrite it
    new = {
        "prob": prob if on else 0.0,
        "denoising_coefficient": optim["denoising_pos_coefficient"],
        **(level if fixed_std else ladder),
        "corrupt_ratio": params.pop("corrupt_ratio", None),
        "corrupt_fixed_atoms": params.pop("all_atoms", False),
        "granularity": "batch",
        "reduction": "joint",
        "exclude_md": "if_marked",
    }
    more = [key for key in known_keys(DeNSConfig) if key not in new]
    if unknown := [key for key in params if key not in more]:
        raise ConfigError(unknown_key(unknown[0], params[unknown[0]], where, [*_PARAMS, *more]))
    new.update(params)
    return {key: value for key, value in new.items() if value is not None}


def translate_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """Rewrite the older names and keys in a ``model`` section, and add a noise head.

    Raises:
        ConfigError: an option of theirs that has no equivalent here.
    """
    model = copy.deepcopy(dict(model))
    if "backbone" not in model:
        return _rename(model)  # one flat list of settings: dens.EquiformerV2DeNS
    model["backbone"] = _rename(model["backbone"])
    heads = model.get("heads")
    if heads is None:
        return model
    for name, head in heads.items():
        head["module"] = _MODELS.get(head.get("module"), head.get("module"))
        if head.pop("use_denoising", True) is False and "rank2" not in str(head["module"]):
            raise ConfigError(
                "use_denoising: false has no equivalent: the energy of corrupted structures is "
                f"always a target (model.heads.{name}.use_denoising)"
            )
    if "noise" not in heads:
        own = _NOISE_HEADS.get(model["backbone"].get("model"), "dens.NoiseHead")
        heads["noise"] = {"module": own}
    return model


def _rename(section: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {_BACKBONE_KEYS.get(key, key): value for key, value in section.items()}
    if "model" in renamed:
        renamed["model"] = _MODELS.get(renamed["model"], renamed["model"])
    return renamed


def translate_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the authors' name of a data set in a ``task`` section by fairchem's."""
    if task.get("dataset") == "trajectory_lmdb_v2":
        return {**task, "dataset": "trajectory_lmdb"}
    return dict(task)
