"""Terms of the training loss: fairchem's targets, as an objective changes them.

Works on attributes that only fairchem's trainers have.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from fairchem.core.common import gp_utils
from torch import Tensor

from dens.objective import Objective, Progress, Target
from dens.ranks import global_mean, sum_over_ranks, world_size
from dens.runs.monitor.training import TrainingMonitor

_LEVELS = {"atom": "atom", "system": "structure"}  # fairchem's names, and ours


class LossTerms:
    """Mixin that computes the weighted terms of the loss, each a mean over all ranks' rows."""

    objective: Objective
    progress: Progress
    monitor: TrainingMonitor | None
    loss_functions: list[tuple[str, dict[str, Any]]]  # fairchem's: name, and function and weight
    _counts: dict[str, Tensor]  # number of rows of the step's batch in each term, over all ranks

    def _compute_loss(self, out: dict[str, Tensor], batch) -> Tensor:
        if not self.model.training:
            return super()._compute_loss(out, batch)
        terms = self._loss_terms(out, batch)
        self.monitor.gradients(terms)
        values = torch.stack([term.detach().double() for term in terms.values()])
        values = sum_over_ranks(values) / world_size()
        loss = self._scaled(sum(terms.values()))
        if world_size() > 1:  # the value is that of all ranks, the gradient is this rank's part
            loss = loss + (values.sum() - loss.detach()).to(loss.dtype)
        self.note_loss(loss, list(terms), values, out, batch)
        return loss

    def local_loss(self, out: dict[str, Tensor], batch) -> Tensor:
        """Compute the contribution of one micro-batch on this rank to the loss of the step."""
        return self._scaled(sum(self._loss_terms(out, batch).values()))

    @staticmethod
    def _scaled(loss: Tensor) -> Tensor:
        # ranks that share a graph hold parts of one gradient; DDP then averages them
        return gp_utils.scale_backward_grad(loss) if gp_utils.initialized() else loss

    def _loss_terms(self, out: dict[str, Tensor], batch) -> dict[str, Tensor]:
        """Compute the weighted terms of the training loss by name, scalars."""
        terms = {}
        for target in self._targets(batch):
            total = target.total(out[target.name])
            if not target.summed:
                total = global_mean(total, self._counts[target.name])
            terms[target.name] = target.weight * total
        return terms

    def _count_on_all_ranks(self, batch) -> dict[str, Tensor]:
        """Count for each term the rows that its mean runs over, on all ranks."""
        counts = {target.name: target.count for target in self._targets(batch)}
        total = sum_over_ranks(torch.stack(list(counts.values())))
        return dict(zip(counts, total, strict=True))

    def _targets(self, batch) -> list[Target]:
        base = [self._base_target(name, info, batch) for name, info in self.loss_functions]
        return self.objective.targets(base, batch, self.progress)

    def _base_target(self, name: str, info: dict[str, Any], batch) -> Target:
        """Describe what fairchem would learn of an output of the uncorrupted structures."""
        return Target(
            name,
            value=self._normalized(name, batch),
            rows=self._counted(name, batch, "train_on_free_atoms"),
            level=_LEVELS[self.output_targets[name]["level"]],
            weight=info["coefficient"],
            error=partial(_errors, info["fn"].loss_fn, batch.natoms),
            summed=info["fn"].reduction != "mean",
        )

    def _counted(self, name: str, batch, setting: str) -> Tensor:
        """Mark the rows of a target that count: all, or free atoms, as ``setting`` of the output.

        Returns:
            (n_atoms,) or (n_structures,) bool.
        """
        target = self.output_targets[name]
        rows = batch.fixed if target["level"] == "atom" else batch.natoms
        if target["level"] == "atom" and target.get(setting, True):
            return rows == 0
        return torch.ones_like(rows, dtype=torch.bool)

    def _normalized(self, name: str, batch) -> Tensor:
        """Convert a target to units of the output: (n_atoms or n_structures, components)."""
        per_atom = self.output_targets[name]["level"] == "atom"
        target = batch[name].view(len(batch.pos) if per_atom else len(batch.natoms), -1)
        if name in self.elementrefs:
            target = self.elementrefs[name].dereference(target, batch)
        return self.normalizers[name].norm(target) if name in self.normalizers else target


def _errors(function: Any, natoms: Tensor, output: Tensor, target: Tensor) -> Tensor:
    """Compute fairchem's error of each row, averaged over components: (rows,)."""
    errors = function(output, target, natoms)
    return errors if errors.dim() == 1 else errors.mean(dim=-1)
