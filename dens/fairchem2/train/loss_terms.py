"""Terms of the training loss: errors are fairchem's, rows and denominators an objective's.

In a batch without a corrupted atom the arithmetic is that of fairchem's ``DDPMTLoss``. Numbers that
are not finite stay so, where that turns them to zero: such steps are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from fairchem.core.common import gp_utils
from fairchem.core.modules.loss import DDPMTLoss
from torch import Tensor, nn

from dens.objective import Target
from dens.ranks import sum_over_ranks, world_size
from dens.settings import ConfigError


class Part(NamedTuple):
    """Rows of a term that share a weight, an error and a mean."""

    target: Target  # value and rows are not used: the task has them
    rows: Tensor | None  # (rows,) bool, on the device | None: all that count
    count: Tensor  # () | rows, or structures, that the mean runs over, on all ranks
    of_structure: Tensor | None  # (n_structures,) | rows of each, for a mean of their means

    def loss(self, pred: Tensor, value: Tensor, mask: Tensor, natoms: Tensor) -> Tensor:
        """Compute the weighted loss: scalar."""
        if self.rows is not None:
            mask = mask & self.rows[:, None]
        # outside of the mask nothing, not even NaN, reaches the sum or its gradient
        pred, value = torch.where(mask, pred, 0), torch.where(mask, value, 0)
        errors = self.target.error(pred, value, natoms)
        if self.target.summed:
            return self.target.weight * errors.sum()
        if self.of_structure is not None:
            numbers = torch.arange(len(natoms), device=natoms.device)
            structure = numbers.repeat_interleave(natoms, output_size=len(errors))
            zeros = errors.new_zeros(len(natoms))
            errors = zeros.scatter_reduce(0, structure, errors, reduce="sum") / self.of_structure
        mean = errors.sum() * world_size() / self.count.to(errors.dtype)
        # ranks that share a graph hold parts of one gradient; DDP then averages them
        mean = gp_utils.scale_backward_grad(mean) if gp_utils.initialized() else mean
        return self.target.weight * mean


class TermLoss(nn.Module):
    """Loss of a task in a training step; it takes the place of fairchem's.

    Args:
        name: of the term.
        terms: of the step, by name; this one is added.
    """

    def __init__(self, name: str, terms: dict[str, Term]) -> None:
        super().__init__()
        self.name, self.terms = name, terms
        self.complete: Callable[[], None] | None = None  # called once the term is known
        self.parts: Sequence[Part] = ()  # of the present step

    def forward(self, pred: Tensor, target: Tensor, mult_mask: Tensor, natoms: Tensor) -> Tensor:
        """Compute the loss, as fairchem calls it."""
        value = target.view(pred.shape)
        whole_rows = mult_mask.numel() != pred.numel()
        mask = mult_mask[:, None] if whole_rows else mult_mask.view(pred.shape)
        loss = sum(part.loss(pred, value, mask, natoms) for part in self.parts)
        self.terms[self.name] = Term(loss, pred.detach())
        if self.complete is not None:
            self.complete()
        return loss


class Term(NamedTuple):
    """A term of the present step's loss, with its graph, and the prediction from which it is."""

    loss: Tensor
    prediction: Tensor


def check_loss(task: Any) -> None:
    """Refuse a loss whose rows cannot be told apart.

    Raises:
        ConfigError: it is not fairchem's ``DDPMTLoss``.
    """
    if not isinstance(task.loss_fn, DDPMTLoss):
        raise ConfigError(
            "loss_fn must be a fairchem.core.modules.loss.DDPMTLoss around the error of a row, got "
            f"{type(task.loss_fn).__name__} (runner.train_eval_unit.tasks: {task.name}.loss_fn)"
        )


def make_parts(
    targets: Mapping[str, Sequence[Target]], batch: Any, device: torch.device
) -> dict[str, list[Part]]:
    """Count the rows of all terms on all ranks, in one collective.

    Args:
        targets: the targets of each term, by its name, for a batch on the CPU.
    """
    counted = [_count(target, batch) for parts in targets.values() for target in parts]
    total = torch.stack([count for count, _ in counted]).to(device)
    counts = iter(sum_over_ranks(total).clamp(min=1))
    of_structures = iter([of_structure for _, of_structure in counted])
    found: dict[str, list[Part]] = {}
    for name, parts in targets.items():
        several = len(parts) > 1
        for target in parts:
            rows = target.rows.to(device) if several else None
            of_structure = next(of_structures)
            if of_structure is not None:
                of_structure = of_structure.to(device)
            found.setdefault(name, []).append(Part(target, rows, next(counts), of_structure))
    return found


def _count(target: Target, batch: Any) -> tuple[Tensor, Tensor | None]:
    """Count the rows of a mean on this rank; of a mean of means its structures, and their rows."""
    rows = target.rows if target.mean_over is None else target.mean_over
    if target.level == "structure":  # fairchem counts components
        return (rows[:, None] & target.value.isfinite()).sum(), None
    if not target.per_structure:
        return rows.sum(), None
    of_structure = torch.zeros(len(batch.natoms)).index_add(0, batch.batch, rows.float())
    return (of_structure > 0).sum(), of_structure.clamp(min=1)
