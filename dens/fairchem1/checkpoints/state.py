"""Versioned state of dens in a checkpoint, and writing checkpoints.

Beside fairchem's keys a checkpoint of dens holds ``{"dens": {"version": 1, "package": "0.1.0",
"metrics": {...}, "skipped_steps": 0, "sampling": {...}}}``. dens 0.1.0 wrote ``metrics`` and
``skipped_steps`` under ``steps``: version 0.
This module imports nothing of fairchem; it is here because the other keys are fairchem 1.10's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dens import __version__
from dens.files import atomic_file

VERSION = 1


def dens_state(metrics: Mapping[str, Any], skipped_steps: int) -> dict[str, Any]:
    """Make the ``dens`` entry: running means of metrics, and the number of skipped steps."""
    state = {"metrics": metrics, "skipped_steps": skipped_steps}
    return {"version": VERSION, "package": __version__, **state}


def upgrade(content: dict[str, Any], where: str) -> dict[str, Any]:
    """Convert the content of a checkpoint of an older version of dens; leave foreign ones alone.

    Raises:
        ValueError: a version that this package does not know; names the file, ``where``.
    """
    if "dens" not in content:
        if not isinstance(content.get("steps"), Mapping):
            return content
        content = _upgrade_v0_v1(content)
    state = content["dens"]
    version = state.get("version") if isinstance(state, Mapping) else None
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(
            f"{where} must be a checkpoint of version 0 to {VERSION} of dens, got version "
            f"{version!r} (dens.version): dens {__version__} does not know it, update dens"
        )
    return content


def _upgrade_v0_v1(content: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in content.items() if key != "steps"}
    return {**rest, "dens": {"version": 1, "package": "0.1.0", **content["steps"]}}


def write_checkpoint(state: Mapping[str, Any], checkpoint_dir: str, checkpoint_file: str) -> str:
    """Write a checkpoint atomically, as fairchem's ``save_checkpoint`` is called; return its path.

    A crash at any moment leaves the previous file or the new one, complete.
    """
    path = Path(checkpoint_dir, checkpoint_file)
    with atomic_file(path) as file:
        torch.save(state, file)
    return str(path)


def refuse_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse to save weights that hold NaN or infinity.

    Raises:
        FloatingPointError: names the first such tensor.
    """
    for name, value in tensors:
        if not value.isfinite().all():
            raise FloatingPointError(
                f"{name} is not finite: no checkpoint was written, the previous one stays"
            )
