"""Terms of the DeNS training loss, from fairchem's targets, normalizers and loss functions.

Imports nothing of fairchem, but works on attributes that only its trainers have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dens.denoising.loss import dens_loss, loss_counts
from dens.ranks import global_mean, sum_over_ranks


class LossTerms:
    """Mixin that computes the weighted terms of the loss, each a mean over all ranks' rows.

    Forces count on free atoms outside C, the noise on C, the energy for every structure and any
    other target for clean structures.
    """

    loss_functions: list[tuple[str, dict[str, Any]]]  # fairchem's: name, and function and weight
    _counts: dict[str, Tensor]  # number of rows of the step's batch in each term, over all ranks

    def _loss_terms(self, out: dict[str, Tensor], batch) -> dict[str, Tensor]:
        """Compute the weighted terms of the training loss by name, scalars."""
        terms = {}
        for name, info in self.loss_functions:
            if name == "forces":
                terms[name], terms["noise"] = self._denoising_terms(info, out, batch)
            else:
                terms[name] = self._plain_term(name, info, out, batch)
        return terms

    def _count_on_all_ranks(self, batch) -> dict[str, Tensor]:
        """Count for each term the rows that its mean runs over, on all ranks."""
        counts = {name: self._rows(name, batch).sum() for name, _ in self.loss_functions}
        free = self._free(batch, "train_on_free_atoms")
        counts["forces"] = loss_counts(batch.noise_mask, free, self.dens.reduction)
        flat = sum_over_ranks(torch.cat([count.view(-1) for count in counts.values()]))
        parts = flat.split([count.numel() for count in counts.values()])
        return {name: p.view_as(counts[name]) for name, p in zip(counts, parts, strict=True)}

    def _free(self, batch, setting: str, name: str = "forces") -> Tensor:
        """Mark the atoms that count in a target, free ones or all: (n_atoms,) bool."""
        free_only = self.output_targets[name].get(setting, True)
        return batch.fixed == 0 if free_only else torch.ones_like(batch.fixed, dtype=torch.bool)

    def _rows(self, name: str, batch) -> Tensor:
        """Mark the rows that count in a term without noise: (n_atoms,) or (n_structures,) bool."""
        clean = batch.sigma == 0
        if self.output_targets[name]["level"] != "atom":
            return clean if name != "energy" else torch.ones_like(clean)
        return clean[batch.batch] & self._free(batch, "train_on_free_atoms", name)

    def _denoising_terms(self, info, out, batch):
        target = self._normalized("forces", batch)
        return dens_loss(
            forces_pred=out["forces"].to(target.dtype),
            forces=target,
            noise_pred=out["noise"].to(target.dtype),
            noise=batch.noise / self.dens.noise_scale,
            noise_mask=batch.noise_mask,
            free=self._free(batch, "train_on_free_atoms"),
            force_coefficient=info["coefficient"],
            denoising_coefficient=self.dens.coefficient_at(
                self.epoch / self.config["optim"]["max_epochs"]
            ),
            counts=self._counts["forces"],
            error=lambda p, t: _errors(info["fn"].loss_fn(p, t, batch.natoms)),
        )

    def _plain_term(self, name: str, info, out, batch) -> Tensor:
        target = self._normalized(name, batch)
        rows = self._rows(name, batch)[:, None]
        pred, target = (torch.where(rows, x, 0) for x in (out[name].to(target.dtype), target))
        total = _errors(info["fn"].loss_fn(pred, target, batch.natoms)).sum()
        if info["fn"].reduction == "mean":
            total = global_mean(total, self._counts[name])
        return info["coefficient"] * total

    def _normalized(self, name: str, batch) -> Tensor:
        """Convert a target to units of the output: (n_atoms or n_structures, components)."""
        per_atom = self.output_targets[name]["level"] == "atom"
        target = batch[name].view(len(batch.pos) if per_atom else len(batch.natoms), -1)
        if name in self.elementrefs:
            target = self.elementrefs[name].dereference(target, batch)
        return self.normalizers[name].norm(target) if name in self.normalizers else target


def _errors(errors: Tensor) -> Tensor:
    """Average over components, for loss functions that return one error for each: (rows,)."""
    return errors if errors.dim() == 1 else errors.mean(dim=-1)
