"""Keep the settings that are part of a trained function: a checkpoint's replace a config's.

Weights mean what they were trained to mean only with the settings of their model: the energy is a
sum over atoms divided by ``avg_num_nodes``, the Gaussians of a distance stretch with
``max_radius``, and so on. None of these changes a shape, so weights load with any of them.

Three kinds of settings stay the config's: sizes, which must fit the weights or are refused by name
(``max_num_elements`` may grow); regularisation, initialisation and cost; and whether energies
include the references in the weights (``use_energy_lin_ref``), if the config sets it.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fairchem.core.common.registry import registry
from torch import Tensor

from dens.fairchem1.backbones.families import Family, family_of_section, family_of_weights
from dens.fairchem1.backbones.sizes import EMBEDDING
from dens.fairchem1.checkpoints.layouts import DENS, Checkpoint, read
from dens.fairchem1.checkpoints.model_sections import dens_section
from dens.settings import ConfigError

_LIN_REF = ("load_energy_lin_ref", "use_energy_lin_ref")
_OF_HEADS = ("reduce", "edge_level_mlp", "extensive", "avg_num_nodes", "default_norm_type")
_ENCODING = ("force_encoding", "sigma_encoding")


def _defaults(function: Callable[..., None]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _defaults_of(family: Family) -> dict[str, Any]:
    """Return the settings of a backbone of dens, with the values in force by default."""
    return {**family.stock_defaults, **{"force_encoding": True, "sigma_encoding": False}} | {
        **family.defaults
    }


def _trained_keys(family: Family) -> list[str]:
    others = {*family.fixed, *family.of_training, *_LIN_REF, *_ENCODING}
    return [key for key in _defaults_of(family) if key not in others]


class Replaced(NamedTuple):
    """A setting of the config that a checkpoint's replaces; ``given`` is None if it is absent."""

    key: str
    trained: Any
    given: Any
    default: Any

    def __str__(self) -> str:
        given = f"{self.given!r}" if self.given is not None else f"by default {self.default!r}"
        return f"{self.key} = {self.trained!r} (config: {given})"


def adopt(
    model: Mapping[str, Any], source: Checkpoint, path: str
) -> tuple[dict[str, Any], list[Replaced]]:
    """Put the settings under which a checkpoint was trained into a ``model`` section.

    Args:
        model: the section of a config, of a hydra model or one flat list of settings.
        source: the checkpoint from which the run starts.
        path: the name of its file, for errors.

    Returns:
        The section, and the settings that were replaced.

    Raises:
        ConfigError: the config sets a smaller ``max_num_elements``.
    """
    model = copy.deepcopy(dict(model))
    backbone = model.get("backbone", model)
    resumes = source.layout == DENS and "optimizer" in source.content
    ours = str(backbone.get("model", model.get("name"))).startswith("dens")
    family = family_of_section(model) or family_of_weights(source.weights)
    defaults = _defaults_of(family)
    replaced = list(_adopt_elements(backbone, source, path, resumes, defaults))
    if source.model is not None and family_of_section(source.model) is family:
        trained = source.model["backbone"]
        same_model = ours and resumes and "noise" in source.heads.values()
        keys = _keys_to_adopt(family, backbone, trained, same_model)
        replaced += _adopt_keys(keys, backbone, trained, defaults, "model.backbone")
        if "backbone" in model:
            replaced += _adopt_heads(model, source.model)
    if "backbone" not in model:  # a flat list
        replaced = [r._replace(key=r.key.replace("model.backbone.", "model.")) for r in replaced]
    return model, replaced


def _keys_to_adopt(
    family: Family, config: Mapping, trained: Mapping, same_model: bool
) -> list[str]:
    keys = _trained_keys(family)
    if trained.get("use_energy_lin_ref") and "use_energy_lin_ref" not in config:
        keys += _LIN_REF
    given = (config.get("sigma_encoding"), trained.get("sigma_encoding"))
    if same_model:
        keys += _ENCODING
    elif all(given):  # true or 'structure'; otherwise it is absent on one side, with zero effect
        keys.append("sigma_encoding")
    return keys


def _adopt_keys(
    keys: list[str], config: dict, trained: Mapping, defaults: Mapping, where: str
) -> Iterator[Replaced]:
    for key in keys:
        ours, theirs = (_value(section, key, defaults) for section in (config, trained))
        if ours != theirs:
            given, config[key] = config.get(key), theirs
            yield Replaced(f"{where}.{key}", theirs, given, defaults.get(key))


def _value(section: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> Any:
    """Return the value of a setting in force, as a plain number, text or list."""
    value = section.get(key)
    if value is None:
        value = defaults.get(key)
    if hasattr(value, "item"):  # a numpy number
        value = value.item()
    return bool(value) if isinstance(defaults.get(key), bool) and value in (0, 1) else value


def _adopt_elements(
    config: dict, source: Checkpoint, path: str, resumes: bool, defaults: Mapping
) -> Iterator[Replaced]:
    if EMBEDDING not in source.weights:
        return
    trained, given = len(source.weights[EMBEDDING]), config.get("max_num_elements")
    default = defaults["max_num_elements"]
    if given is None and (trained > default or (trained < default and resumes)):
        config["max_num_elements"] = trained
        yield Replaced("model.backbone.max_num_elements", trained, None, default)
    elif given is not None and given < trained:
        raise ConfigError(
            f"{path} does not fit the model: max_num_elements is {trained} in the checkpoint and "
            f"{given} in the config: it may be larger there, not smaller "
            "(model.backbone.max_num_elements)"
        )


def _adopt_heads(model: dict[str, Any], trained: Mapping[str, Any]) -> Iterator[Replaced]:
    ours, theirs = dens_section(model)["heads"], trained["heads"]
    for name, head in ours.items():
        same = [n for n, other in theirs.items() if other["module"] == head["module"]]
        alone = sum(other["module"] == head["module"] for other in ours.values()) == 1
        found = name if name in same else same[0] if len(same) == 1 and alone else None
        if found is None:
            continue
        bases = reversed(registry.get_model_class(head["module"]).__mro__)
        defaults = {k: v for base in bases for k, v in _defaults(base.__init__).items()}
        keys = [key for key in _OF_HEADS if key in defaults]
        config = model["heads"][name]
        yield from _adopt_keys(keys, config, theirs[found], defaults, f"model.heads.{name}")


def adopt_settings(config: dict[str, Any], notify: Callable[[str], None]) -> dict[str, Any]:
    """Put the settings of the checkpoint from which a run starts into its config.

    Args:
        config: settled, with the keys that the launcher adds (``checkpoint``, ``run_dir``, ...).
        notify: called with a line about what was replaced, or could not be compared.

    Raises:
        ConfigError: the checkpoint cannot be read, or the config's ``max_num_elements`` is smaller.
    """
    path, model = _start_of(config), config.get("model")
    if path is None or family_of_section(model) is None:
        return config
    config = dict(config)
    try:
        source = read(path, raw=True)
    except ValueError as error:
        trainer = registry.get_trainer_class(config.get("trainer", "ocp"))
        if hasattr(trainer, "objective_class"):
            raise ConfigError(str(error)) from error
        notify(f"{error}; so its settings are not compared with the config's")
        return config
    config["model"], replaced = adopt(model, source, path)
    if replaced:
        notify(settings_notice(path, replaced))
    if source.model is None:
        notify(no_config_notice(source, path))
    return config


def _start_of(config: Mapping[str, Any]) -> str | None:
    """Return the path of the checkpoint from which a run starts, as fairchem's tasks find it."""
    if config.get("checkpoint"):
        return str(config["checkpoint"])
    own = Path(config.get("run_dir") or ".", "checkpoints", str(config.get("timestamp_id")))
    if (own / "checkpoint.pt").is_file():
        return str(own / "checkpoint.pt")
    model = config.get("model")
    pretrained = model.get("pretrained") if isinstance(model, Mapping) else None
    path = pretrained.get("path") if isinstance(pretrained, Mapping) else pretrained
    return str(path) if path and os.path.isfile(path) else None


def settings_notice(path: str, replaced: list[Replaced]) -> str:
    """Write the line about replaced settings."""
    return (
        f"Settings with which {path} was trained replace those of the config: "
        f"{', '.join(map(str, replaced))}"
    )


def no_config_notice(source: Checkpoint, path: str) -> str:
    """Write the line about a checkpoint that holds weights only."""
    family = family_of_weights(source.weights)
    names = [*_trained_keys(family)[:4], *list(family.defaults)[:1]]
    return (
        f"{path} holds no config: whether it was trained with the config's settings "
        f"({', '.join(names)}, ...) cannot be compared"
    )


def settle_scales(trainer: Any, source: Checkpoint, path: str, resume: bool) -> list[str]:
    """Drop a trainer's normalisers that a checkpoint was trained without, and say what differs.

    Those that the checkpoint has replace the trainer's when it is loaded. Element references that
    it lacks stay, since they belong to the data, unless its training is resumed.

    Returns:
        At most one notice for normalisers, and one for element references.
    """
    changed = []
    for name, state in source.normalizers.items():
        ours, theirs = _scale_of(trainer.normalizers.get(name)), _scale_of(state)
        if ours is None or not torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8):
            changed.append(f"{name} {_in_words(theirs)} (config: {_in_words(ours)})")
    outputs = _outputs(source)
    for name in [n for n in trainer.normalizers if n in outputs and n not in source.normalizers]:
        ours = _scale_of(trainer.normalizers.pop(name))
        changed.append(f"{name} none (config: {_in_words(ours)})")
    notices = [f"Normalisers of {path} replace the config's: {'; '.join(changed)}"] * bool(changed)
    return notices + _settle_references(trainer, source, path, resume)


def _settle_references(trainer: Any, source: Checkpoint, path: str, resume: bool) -> list[str]:
    changed = []
    for name, state in source.elementrefs.items():
        theirs = state["element_references"].cpu()
        ours = trainer.elementrefs.get(name)
        ours = None if ours is None else ours.element_references.cpu()
        if ours is None or ours.shape != theirs.shape:
            trainer.elementrefs.pop(name, None)  # fairchem makes them anew
            changed.append(f"{name} (config: {'none' if ours is None else f'{len(ours)} numbers'})")
        elif not torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6):
            apart = (ours - theirs).abs()
            count = int((apart > 1e-6).sum())
            changed.append(f"{name} ({count} elements differ, by up to {apart.max():.4g})")
    notices = [f"Element references of {path} replace the config's: {'; '.join(changed)}"]
    notices *= bool(changed)
    if lacking := [n for n in trainer.elementrefs if n not in source.elementrefs]:
        names = ", ".join(lacking)
        for name in lacking if resume else ():
            trainer.elementrefs.pop(name)
        then = "are left out" if resume else "are added to its results"
        notices.append(f"{path} has no element references of {names}: those of the config {then}")
    return notices


def _outputs(source: Checkpoint) -> set[str]:
    """Return the targets whose normalisers a checkpoint would hold if it had been trained so."""
    if source.model is None or "normalizers" not in source.content:
        return set()
    outputs = source.content["config"].get("outputs") or ("energy", "forces")
    return {*outputs}


def _scale_of(normalizer: Any) -> Tensor | None:
    """Return mean and standard deviation of a normaliser, or of its state dict."""
    if normalizer is None:
        return None
    state = normalizer if isinstance(normalizer, Mapping) else normalizer.state_dict()
    spread = state["rmsd"] if "rmsd" in state else state["std"]
    return torch.stack([state["mean"].reshape(-1)[0], spread.reshape(-1)[0]]).float().cpu()


def _in_words(scale: Tensor | None) -> str:
    return "none" if scale is None else f"mean {scale[0]:.6g}, stdev {scale[1]:.6g}"
