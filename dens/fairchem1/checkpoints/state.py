"""Versioned state of dens in a checkpoint, and writing checkpoints.

Beside fairchem's keys a checkpoint of dens holds ``{"dens": {"version": 1, "package": "0.1.0",
"metrics": {...}, "skipped_steps": 0, "elements": [1, 8], "sampling": {...}}}``. dens 0.1.0 wrote
``metrics`` and ``skipped_steps`` under ``steps``: version 0. ``elements``, the atomic numbers whose
embeddings were trained, is absent where they are not known: before training, and after a start from
a checkpoint without them.

This module imports nothing of fairchem; it is here because the other keys are fairchem 1.10's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dens import __version__
from dens.files import atomic_file

VERSION = 1
EXPORTED_ELEMENTS = "trained_elements"  # key in exports, which have no ``dens`` entry


def dens_state(
    metrics: Mapping[str, Any], skipped_steps: int, record: ElementRecord | None = None
) -> dict[str, Any]:
    """Make the ``dens`` entry: running means of metrics, skipped steps, trained elements."""
    state = {"metrics": metrics, "skipped_steps": skipped_steps}
    if record is not None and (elements := record.elements()):
        state["elements"] = elements
    return {"version": VERSION, "package": __version__, **state}


def trained_elements(content: Mapping[str, Any]) -> list[int] | None:
    """Return the atomic numbers that a checkpoint or an export records as trained, if it does."""
    return (content.get("dens") or {}).get("elements") or content.get(EXPORTED_ELEMENTS)


class ElementRecord:
    """Record of the elements whose embeddings training has changed: a hook after optimizer steps.

    All ranks see the same gradients, so no collective is needed.

    Args:
        weight: (n_elements, channels), the embedding of the elements.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._seen = weight.detach().new_zeros(len(weight)).bool()
        self._known = True

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer) -> ElementRecord | None:
        """Start the record of a model, if it has such an embedding."""
        embedding = getattr(getattr(model, "backbone", None), "sphere_embedding", None)
        if embedding is None:
            return None
        record = cls(embedding.weight)
        optimizer.register_step_post_hook(record)
        return record

    def start(self, content: Mapping[str, Any]) -> None:
        """Continue the record of the checkpoint from which training starts."""
        elements = trained_elements(content)
        self._known = elements is not None
        self._seen[elements or []] = True

    def __call__(self, *_: Any) -> None:
        if self._weight.grad is not None:
            self._seen |= (self._weight.grad != 0).any(dim=1)

    def elements(self) -> list[int] | None:
        """Return the atomic numbers; None if not known."""
        return self._seen.nonzero()[:, 0].tolist() if self._known else None


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
