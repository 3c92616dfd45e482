"""Check the keys of a config against the parameters of what it builds, with near misses."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.modules import transforms
from hydra.utils import get_object

from dens.runs.check.findings import Findings
from dens.settings import closest, is_near_miss

_HYDRA = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
# of a data set's section, which fairchem reads here and there
_DATA = (
    *("splits", "format", "src", "a2g_args", "transforms", "key_mapping", "metadata_path"),
    *("sample_n", "first_n", "no_shuffle", "seed", "max_atoms", "subset_to", "select_args"),
    *("connect_args", "keep_in_memory", "atoms_transform_args", "include_relaxed_energy"),
    *("pattern", "index_file", "ase_read_args", "use_tqdm", "lin_ref"),
)


def check_parameters(config: Mapping[str, Any], findings: Findings) -> None:
    """Report unknown and missing parameters, each with its place in the config.

    Args:
        config: plain values, resolved.
    """
    problems = find_problems(config["runner"])
    for problem in problems:
        findings.error("settings", problem)
    if not problems:
        unit = config["runner"].get("train_eval_unit") or {}
        findings.ok("settings", f"unit {unit.get('_target_', 'none')}")


def find_problems(runner: Mapping[str, Any]) -> list[str]:
    """List unknown and missing parameters in the section ``runner``, each with its place."""
    return [*_of_calls("runner", runner), *_of_data(runner)]


def _of_calls(where: str, node: Any) -> Iterator[str]:
    """Yield the problems of a section and of all below it."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield from _problems(where, node["_target_"], node, bool(node.get("_partial_")))
        if where.endswith(".model"):
            yield from _of_model(where, node)
        for key, value in node.items():
            yield from _of_calls(f"{where}.{key}", value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for number, value in enumerate(node):
            yield from _of_calls(f"{where}[{number}]", value)


def _of_model(where: str, model: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of a backbone and heads, which fairchem builds by their names."""
    parts = {"backbone": (model.get("backbone"), "model")}
    parts |= {f"heads.{n}": (head, "module") for n, head in (model.get("heads") or {}).items()}
    for name, (part, key) in parts.items():
        if isinstance(part, Mapping) and isinstance(part.get(key), str):
            given = {k: v for k, v in part.items() if k != key}
            yield from _problems(f"{where}.{name}", part[key], given, partial=True)


def _problems(where: str, target: str, given: Mapping[str, Any], partial: bool) -> Iterator[str]:
    try:
        called = _find(target)
    except Exception as error:
        yield f"{target} cannot be imported: {' '.join(str(error).split())} ({where})"
        return
    parameters, open_ended = parameters_of(called)
    if parameters is None:
        return
    for key in given.keys() - _HYDRA - parameters.keys():
        close = closest(key, parameters)
        if not open_ended or (close and is_near_miss(key, parameters)):
            hint = f": did you mean {close}?" if close else ""
            yield f"unknown key {key} = {given[key]!r:.40} of {target}{hint} ({where}.{key})"
    if not partial and "_args_" not in given:
        needed = {n for n, p in parameters.items() if p.default is p.empty}
        for name in sorted(needed - given.keys()):
            yield f"{name} is missing, which {target} needs ({where}.{name})"


def _find(target: str) -> Any:
    try:
        return get_object(target)
    except Exception:
        return registry.get_model_class(target)


def parameters_of(called: Any) -> tuple[dict[str, inspect.Parameter] | None, bool]:
    """List the parameters of a function or class by name, those of its parents included.

    Returns:
        None where there is no signature; and whether it takes others, too.
    """
    found: dict[str, inspect.Parameter] = {}
    owners = called.__mro__ if inspect.isclass(called) else [called]
    for owner in owners:
        function = vars(owner).get("__init__") if inspect.isclass(owner) else owner
        if function is None:
            continue
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return None, True
        kinds = {parameter.kind for parameter in parameters}
        named = (p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        for parameter in named:
            found.setdefault(parameter.name, parameter)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            found.pop("self", None)
            return found, False
    found.pop("self", None)
    return found, True


def _of_data(runner: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of the sections of data sets, which fairchem reads without a signature."""
    for loader in ("train_dataloader", "eval_dataloader"):
        dataset = (runner.get(loader) or {}).get("dataset") or {}
        for name, section in (dataset.get("dataset_configs") or {}).items():
            where = f"runner.{loader}.dataset.dataset_configs.{name}"
            for key in section.keys() - set(_DATA):
                if is_near_miss(key, _DATA):
                    hint = f"did you mean {closest(key, _DATA)}?"
                    yield f"unknown key {key} = {section[key]!r:.40}: {hint} ({where}.{key})"
            for key in section.get("transforms") or {}:
                if key not in ("normalizer", "element_references") and not hasattr(transforms, key):
                    known = [n for n in vars(transforms) if n.endswith("_transform")]
                    close = closest(key, known)
                    hint = f": did you mean {close}?" if close else ""
                    yield f"unknown transform {key}{hint} ({where}.transforms.{key})"
