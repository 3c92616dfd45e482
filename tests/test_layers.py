"""The floor plan of the package: which room may import which, and how large a room may grow."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGE = ROOT / "dens"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms from the top down: a room imports rooms of lower layers, and nothing else.
LAYERS = [
    {"cli"},
    {"fairchem1", "fairchem2"},
    {"runs", "data", "install"},
    {"relax"},
    {"denoising", "graphs", "fast", "safe"},
    {"objective"},
    {"settings", "metrics", "fields", "noise_levels", "random", "ranks", "constraints"}
    | {"process", "files", "patching", "transfer", "hosts"},
]
LAYER = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}
ADAPTERS = LAYERS[1]
MAX_LINES, MAX_FILES = 300, 8
# The same role in parallel rooms.
ROLES = {
    "__init__",
    "config",
    "metrics",
    "oc20",
    "md17",
    "check",
    "data",
    "launch",
    "bends",
    "evaluate",
    "inspect",
    "corruption",
    "settings",
    "objective",
    "host",
    "logger",
    "loss_terms",
    "steps",
    "step_metrics",
}


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def room_of(module: str) -> str | None:
    """The room of a module of the package: the first part of its name below ``dens``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


MODULES = {module_of(path): path for path in FILES}


def imports_of(path: Path, nodes=None) -> set[str]:
    """The modules that a file imports, those in the bodies of functions included."""
    found = set()
    for node in ast.walk(tree_of(path)) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def own(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "dens"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_down(path):
    room = room_of(module_of(path))
    for imported in own(imports_of(path)):
        target = room_of(imported)
        if room is None or target is None:
            # the package itself loads its public names lazily
            assert room is not None or target is None, f"{path} imports {imported}"
        elif target != room:
            down = LAYER[target] > LAYER[room]
            both_at_the_top = LAYER[target] == LAYER[room] == len(LAYERS) - 1
            assert down or both_at_the_top, f"{path.relative_to(ROOT)} imports {imported}"


def test_modules_import_each_other_in_no_circle():
    graph = {name: own(imports_of(path)) - {name} for name, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())


def test_only_adapters_import_their_host():
    for path in FILES:
        hosts = {name for name in imports_of(path) if name.split(".")[0] == "fairchem"}
        room = room_of(module_of(path))
        assert not hosts or room in ADAPTERS, f"{path} imports {hosts}"


def test_nothing_but_the_command_line_names_an_adapter():
    """Below the adapters no string holds a module of theirs, which would import them lazily."""
    for path in FILES:
        if room_of(module_of(path)) in {*ADAPTERS, "cli", None}:
            continue
        docstrings = {id(doc) for doc in _docstrings(tree_of(path))}
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = "dens.fairchem" in node.value and id(node) not in docstrings
                assert not named, f"{path}, line {node.lineno}"


def _docstrings(tree: ast.Module):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value


def test_no_room_grows_crooked():
    folders = defaultdict(list)
    for path in FILES:
        lines = len(path.read_text().splitlines())
        assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines"
        if path.name != "__init__.py":
            folders[path.parent].append(path.name)
    for folder, names in folders.items():
        assert len(names) <= MAX_FILES or folder == PACKAGE, f"{folder} has {len(names)} files"


def test_a_basename_is_used_once():
    places = defaultdict(list)
    for path in FILES:
        places[path.stem].append(str(path.relative_to(ROOT)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert twice.keys() <= ROLES, {k: v for k, v in twice.items() if k not in ROLES}


def test_every_public_object_says_what_it_is():
    """Modules, and public classes and functions at their top level, have a docstring."""
    for path in FILES:
        tree = tree_of(path)
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.relative_to(ROOT)}: {node.name}"
