"""Write checkpoints such that a crash at any moment leaves a readable one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write_checkpoint(state: Mapping[str, Any], checkpoint_dir: str, checkpoint_file: str) -> str:
    """Write ``state`` beside the file of that name, then put it in its place; returns the path."""
    path = Path(checkpoint_dir, checkpoint_file)
    part = path.with_name(f"{path.name}.part")
    with open(part, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # the new name too is on disk
    os.close(folder)
    return str(path)


def refuse_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse to save weights that are not numbers.

    Raises:
        FloatingPointError: names the first such tensor.
    """
    for name, value in tensors:
        if not value.isfinite().all():
            raise FloatingPointError(
                f"{name} is not finite: no checkpoint was written, the previous one stays"
            )
