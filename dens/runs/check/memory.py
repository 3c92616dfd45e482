"""Estimate the memory of training: the model's part is exact, that of a batch is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dens.runs.check.findings import Findings


@dataclass(frozen=True)
class Footprint:
    """Memory of a trainer that has taken a step, in bytes.

    Attributes:
        parts: memory that does not depend on the batch: weights (with buffers), gradients,
            optimizer (its state), EMA (with the copy that validation makes of the weights).
        activations: what the step took beyond these, for a batch of ``atoms`` atoms.
    """

    parts: dict[str, int]
    activations: int
    atoms: int

    @classmethod
    def of(cls, trainer: Any, activations: int, atoms: int) -> Footprint:
        """Measure a trainer that holds gradients and optimizer state."""
        model, ema = trainer.model, trainer.ema
        states = (v for state in trainer.optimizer.state.values() for v in state.values())
        parts = {
            "weights": size([*model.parameters(), *model.buffers()]),
            "gradients": size(p.grad for p in model.parameters() if p.grad is not None),
            "optimizer": size(value for value in states if isinstance(value, Tensor)),
            "EMA": 2 * size(ema.shadow_params) if ema else 0,
        }
        return cls(parts, activations, atoms)

    @property
    def checkpoint(self) -> int:
        """Size of a checkpoint with its training state."""
        return self.parts["weights"] + self.parts["optimizer"] + self.parts["EMA"] // 2


def size(tensors: Iterable[Tensor]) -> int:
    """Sum the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def measure_activations(model: torch.nn.Module) -> Iterator[Callable[[], int]]:
    """Measure the memory of a step beside weights and gradients; call the result afterwards.

    On a GPU that is the peak of the allocated memory, less what was allocated before and the
    gradients. On a CPU, where the peak of a process says little about a small batch, it is the sum
    of the tensors saved for the backward pass, which are the bulk of it.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)

        def peak() -> int:
            gradients = size(p.grad for p in model.parameters() if p.grad is not None)
            return torch.cuda.max_memory_allocated(device) - before - gradients

        yield peak
        return
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output kept with its graph would keep itself alive

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(saved.values())


def check_memory(
    step: Footprint, sizes: np.ndarray, batch_size: int, device: torch.device, findings: Findings
) -> None:
    """Report estimates for a batch of average structures and for one of the largest.

    Args:
        step: memory of a measured step, taken on ``device``.
        sizes: (n_structures,), atoms of the structures.
        batch_size: structures of a batch on each rank.
    """
    average = round(batch_size * sizes.mean())
    largest = int(np.sort(sizes)[-batch_size:].sum())
    per_atom = step.activations / step.atoms
    totals = [sum(step.parts.values()) + per_atom * atoms for atoms in (average, largest)]
    parts = ", ".join(f"{name} {in_words(n_bytes)}" for name, n_bytes in step.parts.items())
    how = "tensors kept for the backward pass" if device.type == "cpu" else "peak of the step"
    findings.ok(
        "memory",
        f"estimate for each rank: {in_words(totals[0])} with {batch_size} average structures "
        f"({average} atoms), {in_words(totals[1])} with the {batch_size} largest ({largest} "
        f"atoms); of that {parts}, and {in_words(per_atom)} an atom ({how}, {step.atoms} atoms)",
    )
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
        if totals[1] > 0.9 * available:
            findings.warn(
                "memory",
                f"{in_words(totals[1])} of the {in_words(available)} of this GPU: the largest "
                "batches may not fit (optim.batch_size)",
            )


def in_words(n_bytes: float) -> str:
    """Format a number of bytes in kB, MB or GB."""
    for size_of_unit, unit in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= size_of_unit:
            return f"{n_bytes / size_of_unit:.3g} {unit}"
    return f"{n_bytes / 1e3:.3g} kB"
