"""Which fairchem-core is installed, and why a test file cannot run with it."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from importlib import metadata
from pathlib import Path

from helpers.paths import ROOT, TESTS


def _major() -> str:
    try:
        return metadata.version("fairchem-core").split(".")[0]
    except metadata.PackageNotFoundError:
        return ""


MAJOR = _major()  # "1", "2", or "" where there is none
# Files that run programs, configs or scripts of 1.10 without importing it.
_PROGRAMS = ("docs", "test_experiments.py", "test_relaxation_benchmark.py")


def why_not(path: Path) -> str | None:
    """Say why a test file cannot run in this environment; None if it can."""
    place = path.relative_to(TESTS).parts[0]
    if place == "fairchem2":
        return None if MAJOR == "2" else _needs("fairchem-core 2")
    if place in ("fairchem1", *_PROGRAMS):
        return None if MAJOR == "1" else _needs("fairchem-core 1.10")
    modules = _reached(path)
    if MAJOR != "1" and any(name.startswith(("dens.fairchem1", "fairchem.")) for name in modules):
        return _needs("fairchem-core 1.10")
    roots = {name.split(".")[0] for name in modules}
    missing = [root for root in sorted(roots) if importlib.util.find_spec(root) is None]
    return _needs(", ".join(missing)) if missing else None


def _needs(what: str) -> str:
    installed = (
        f"fairchem-core {metadata.version('fairchem-core')}" if MAJOR else "no fairchem-core"
    )
    return f"needs {what}; here is {installed}"


def _reached(path: Path) -> set[str]:
    """List the modules that a test file imports, directly or through helpers and dens."""
    found: set[str] = set()
    rest = [path]
    while rest:
        for name in _imports(rest.pop()) - found:
            found.add(name)
            if source := _source(name):
                rest.append(source)
    return found


@cache
def _source(name: str) -> Path | None:
    """Find the file of a module, or of an attribute of a module, of this checkout."""
    if name.split(".")[0] not in ("dens", "helpers"):
        return None
    base = (ROOT if name.startswith("dens") else TESTS).joinpath(*name.split("."))
    for candidate in (
        base.with_suffix(".py"),
        base / "__init__.py",
        base.parent.with_suffix(".py"),
    ):
        if candidate.is_file():
            return candidate
    return None


@cache
def _imports(path: Path) -> frozenset[str]:
    """List what a file imports: of the package at the top level, of tests in functions too."""
    tree = ast.parse(path.read_text())
    of_dens = path.is_relative_to(ROOT / "dens")
    names = set()
    for node in tree.body if of_dens else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)
