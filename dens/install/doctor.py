"""Describe an installation in the few lines that a bug report needs, for ``dens doctor``."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement

import dens
from dens.hosts import fairchem_major, fairchem_version, install_hint

NAME = "fairchem-dens"
_OF_CLONES = ("docs", "test")  # extras of those who change dens
_OWNERS = {b"dens": "dens", b"fairchem": "fairchem-core"}  # of the script, by what it imports


def describe(import_host: Callable[[], Any]) -> Iterator[tuple[str, str]]:
    """Yield what is installed as pairs of name and description.

    What cannot be imported is described by its error, and the rest follows.

    Args:
        import_host: imports the adapter to the installed fairchem-core.
    """
    yield "dens", f"{dens.__version__} in {Path(dens.__file__).parent}"
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    torch, found = _import("torch")
    yield "torch", found + (f", CUDA {torch.version.cuda or 'none'}" if torch else "")
    yield "Triton", _import("triton")[1]
    yield "devices", _attempt(lambda: _devices(torch)) if torch else "unknown without torch"
    yield "e3nn", _import("e3nn")[1]
    yield "PyG", _import("torch_geometric", "torch-geometric")[1]
    yield "fairchem-core", _host(import_host)
    yield "fairchem", _script()
    yield from _extras()


def _import(module: str, distribution: str = "") -> tuple[ModuleType | None, str]:
    """Import a package; return it with its version, or None with the error."""
    version = _version(distribution or module)
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # a broken package raises anything
        if not version:
            return None, "none"
        return None, f"{version}, cannot be imported: {_one_line(error)}"
    return imported, version or f"of no known version, in {imported.__path__[0]}"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _attempt(describe: Callable[[], str]) -> str:
    try:
        return describe()
    except Exception as error:  # of a driver
        return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _devices(torch: Any) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [f"CPU ({cores} cores, {torch.get_num_threads()} threads)"]
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        memory = card.total_memory / 2**30
        found.append(
            f"{card.name} ({memory:.0f} GiB, compute capability {card.major}.{card.minor})"
        )
    return ", ".join(found)


def _host(import_host: Callable[[], Any]) -> str:
    version = fairchem_version()
    if not version:
        return f"none: {install_hint(2)}, or {install_hint(1)} for 1.10"
    if fairchem_major() not in (1, 2):
        return f"{version}, which dens does not know: {install_hint(2)}"
    try:
        import_host()
    except Exception as error:  # a broken package raises anything
        return f"{version}, cannot be imported: {_one_line(error)}"
    return version


def _script() -> str:
    """Say whose program the name ``fairchem`` runs: the package installed last has it."""
    own = Path(sysconfig.get_path("scripts"), "fairchem")
    path = Path(shutil.which("fairchem") or own)
    if not path.is_file():
        return "no script of this name"
    imported = re.search(rb"from (\w+)\S* import", path.read_bytes())
    owner = _OWNERS.get(imported[1]) if imported else None
    line = f"{path}, the program of {owner or 'unknown origin'}"
    if path != own:
        line += f", not in {own.parent}"
    if owner == "fairchem-core":
        line += f": run dens instead, or pip install --force-reinstall --no-deps {NAME}"
    return line


def _extras() -> Iterator[tuple[str, str]]:
    """Yield the complete extras in one line, and a line with the remedy for each of the others."""
    try:
        about = metadata.metadata(NAME)
    except metadata.PackageNotFoundError:
        yield "extras", "unknown: dens is imported from a folder and not installed"
        return
    needs = [Requirement(line) for line in about.get_all("Requires-Dist") or []]
    complete, lines = [], []
    extras = [e for e in about.get_all("Provides-Extra") or [] if e not in _OF_CLONES]
    for extra in ["", *extras]:
        own = [need for need in needs if _belongs(need, extra)]
        if missing := [line for need in own if (line := _missing(need))]:
            remedy = f"pip install '{NAME}[{extra}]'" if extra else f"pip install {NAME}"
            lines.append(
                (f"extra {extra}" if extra else "required", f"lacks {', '.join(missing)}: {remedy}")
            )
        elif own and extra:
            complete.append(extra)
    yield "extras", f"{', '.join(complete) or 'none'} complete"
    yield from lines


def _belongs(need: Requirement, extra: str) -> bool:
    """Tell whether an extra brings a package; without name, whether dens needs it anyway.

    The hosts are left out, and extras that bring extras.
    """
    if extra.startswith("fairchem") or need.name == NAME:
        return False
    always = need.marker is None or need.marker.evaluate({"extra": ""})
    return not always and need.marker.evaluate({"extra": extra}) if extra else always


def _missing(need: Requirement) -> str:
    version = _version(need.name)
    if not version:
        return need.name
    if not need.specifier.contains(version, prereleases=True):
        return f"{need.name}{need.specifier} (here is {version})"
    return ""
