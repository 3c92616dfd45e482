"""Find the recipes that are installed with dens, describe them and copy them.

The recipes are the configs of ``configs/`` in the repository, which the wheel has as
``dens/recipes``. A config is a recipe if it names its data and its trainer or unit; the others are
parts, which recipes include. Recipes are described by their keys and the comment at their top.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dens.files import atomic_file

FOLDER = Path(__file__).parents[1] / "recipes"
_BACKBONES = {
    "equiformer_v2_backbone": "EquiformerV2",
    **dict.fromkeys(("escn_backbone", "ESCNBackbone"), "eSCN"),
    **dict.fromkeys(("esen_backbone", "ESENBackbone", "eSCNMDBackbone"), "eSEN"),
}
_METHOD = re.compile(r"dens\.(?:\w+\.)*(\w+?)(?:Trainer|TrainEvalUnit)")
_ORIGINS = {"Published: ": "published", "Published for ": "adapted"}
_BASELINE = re.compile(r"baseline of (\S+?\.yml)")


@dataclass(frozen=True)
class Recipe:
    """Description of a recipe.

    Attributes:
        name: its path below the folder of recipes, without suffix.
        path: its file.
        host: the major version of fairchem-core that trains it.
        method: what is trained beside energies and forces: DeNS, MoreRed, or baseline for nothing.
        backbone: the model, or the checkpoint that is fine-tuned.
        data: where it looks for its training data.
        origin: published; adapted, for one published with another model; or ours.
    """

    name: str
    path: Path
    host: int
    method: str
    backbone: str
    data: str
    origin: str


def list_recipes() -> list[Recipe]:
    """Describe all installed recipes, in the order of their names.

    Raises:
        ValueError: the installation lacks the folder of recipes.
    """
    root = FOLDER.resolve()
    if not root.is_dir():
        raise ValueError(f"{FOLDER} is missing: this installation of dens has no recipes")
    paths = sorted([*root.rglob("*.yml"), *root.rglob("*.yaml")])
    return [recipe for path in paths if (recipe := _describe(path, root))]


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name: ``oc20/eqv2_dens``, with or without suffix.

    Raises:
        ValueError: there is none; the message suggests names.
    """
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    wanted = re.sub(r"\.ya?ml$", "", name.removeprefix("configs/"))
    if wanted in recipes:
        return recipes[wanted]
    close = [known for known in recipes if Path(known).name == wanted]
    close += difflib.get_close_matches(wanted, recipes, n=3)
    hint = f"did you mean {', '.join(dict.fromkeys(close[:4]))}? " if close else ""
    raise ValueError(f"no recipe {name!r}: {hint}`dens recipes` lists all {len(recipes)}")


def copy_recipe(recipe: Recipe, folder: Path, *, force: bool = False) -> dict[Path, bool]:
    """Copy a recipe and the files that it includes, as they are, to their places below a folder.

    The places are those below the folder of recipes, so that includes find each other, and several
    recipes can share a folder.

    Args:
        recipe: what to copy.
        folder: where to; made if missing.
        force: overwrite files that have other contents.

    Returns:
        ``{file: written}``, the recipe itself first; not written is one with the same contents.

    Raises:
        ValueError: a file has other contents; nothing is written.
    """
    root, copies = FOLDER.resolve(), {}
    for source in dict.fromkeys(_chain(recipe.path)):
        copies[folder / source.relative_to(root)] = source.read_bytes()
    changed = {path: not path.is_file() or path.read_bytes() != copies[path] for path in copies}
    others = [str(path) for path in copies if changed[path] and path.exists()]
    if others and not force:
        raise ValueError(
            f"{', '.join(others)}: exists, with other contents than the recipe's; "
            "nothing was written: --force overwrites, or take another folder"
        )
    for path, content in copies.items():
        if changed[path]:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(content)
    return changed


def _describe(path: Path, root: Path) -> Recipe | None:
    config, name = _merged(path), str(path.relative_to(root).with_suffix(""))
    if runner := config.get("runner"):
        host, unit = 2, runner["train_eval_unit"]
        trainer, model = unit["_target_"], unit["model"]
        (own,) = runner["train_dataloader"]["dataset"]["dataset_configs"].values()
        (src,) = own["splits"]["train"]["src"]
    else:
        host, trainer, model = 1, config.get("trainer"), config.get("model", {})
        src = config.get("dataset", {}).get("train", {}).get("src")
    if not trainer or not src:
        return None
    if isinstance(src, list):
        src = src[0] + f" and {len(src) - 1} more" * (len(src) > 1)
    backbone = model.get("backbone", {}).get("model") or model["checkpoint_location"]
    method = _METHOD.fullmatch(trainer)
    return Recipe(
        name=name,
        path=path,
        host=host,
        method=method[1] if method else "baseline",
        backbone=_backbone(_resolved(backbone, config)),
        data=_resolved(src, config),
        origin=_origin(path),
    )


def _backbone(name: str) -> str:
    if name.endswith(".pt"):
        return name
    name = name.rpartition(".")[2]
    return _BACKBONES.get(name, name.removesuffix("Backbone"))


def _origin(path: Path) -> str:
    """Read the origin from the nearest comment at the top; a baseline has that of its twin."""
    for file in _chain(path):
        if header := _header(file):
            if twin := _BASELINE.search(header):
                return _origin(file.parent / twin[1])
            return next((_ORIGINS[words] for words in _ORIGINS if words in header), "ours")
    return "ours"


def _header(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    stop = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(" ".join(lines[:stop]).replace("#", " ").split())


@cache
def _load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _included(path: Path) -> list[Path]:
    """List the files that a config of either host includes itself."""
    config = _load(path)
    names = list(config.get("includes", []))
    names += [f"{name}.yaml" for name in config.get("defaults", []) if name != "_self_"]
    return [(path.parent / name).resolve() for name in names]


def _chain(path: Path) -> Iterator[Path]:
    yield path
    for include in _included(path):
        yield from _chain(include)


def _merged(path: Path) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for include in _included(path):
        merged = _merge(merged, _merged(include))
    return _merge(merged, _load(path))


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = {**old, **new}
    for key in old.keys() & new.keys():
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            merged[key] = _merge(old[key], new[key])
    return merged


def _resolved(value: str, config: dict[str, Any]) -> str:
    """Replace ``${KEY}``, of keys at the top of a config, as OmegaConf does."""
    return re.sub(r"\$\{(\w+)\}", lambda match: str(config[match[1]]), value)
