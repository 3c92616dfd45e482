"""Labels of a batch of fairchem-core 2: joined for an objective, and routed to the loss by it.

fairchem has a label for each task, which is infinite where a structure has none. Several tasks may
hold the forces, one for each data set. An objective knows one label of a kind, so those are joined.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import Tensor

from dens.denoising.config import DeNSConfig
from dens.fields import CORRUPTIBLE
from dens.objective import Objective, Progress, Target
from dens.runs.not_finite import name_structure
from dens.settings import ConfigError, unknown_value

_LEVELS = {"atom": "atom", "system": "structure"}  # fairchem's names, and ours
_SECTION = "runner.train_eval_unit"


class Labels:
    """Labels of the tasks of a training unit.

    Args:
        tasks: the tasks of training, fairchem's.
        dens_datasets: the data sets whose structures may be corrupted; None: all.

    Raises:
        ConfigError: there is no task for forces, or an unknown data set.
    """

    def __init__(self, tasks: Sequence[Task], dens_datasets: Iterable[str] | None = None) -> None:
        self.tasks = list(tasks)
        known = sorted({name for task in self.tasks for name in task.datasets})
        self.datasets = None if dens_datasets is None else list(dens_datasets)
        for name in self.datasets or ():
            if name not in known:
                where = f"{_SECTION}.dens_datasets"
                raise ConfigError(unknown_value(name, where, known))
        if not self.of("forces"):
            found = ", ".join(f"{t.name} ({t.property})" for t in self.tasks)
            raise ConfigError(
                f"DeNS needs a task with property: forces, which it encodes; got {found or 'none'} "
                f"({_SECTION}.tasks)"
            )

    def of(self, kind: str) -> list[Task]:
        """List the tasks of a property: energy, forces, stress."""
        return [task for task in self.tasks if task.property == kind]

    def check(self, dens: DeNSConfig) -> None:
        """Refuse settings that need labels which there are not.

        Raises:
            ConfigError: names the setting.
        """
        if dens.exclude_md:
            raise ConfigError(
                f"exclude_md = {dens.exclude_md} is for data of fairchem-core 1.10, whose records "
                "are marked; here list the data sets to corrupt under dens_datasets "
                f"({_SECTION}.dens.exclude_md)"
            )
        if dens.max_stress_norm is not None and not self.of("stress"):
            raise ConfigError(
                f"max_stress_norm = {dens.max_stress_norm} needs a task with property: stress "
                f"({_SECTION}.dens.max_stress_norm)"
            )

    def note_nan(self, batch: Any) -> None:
        """Log labels that are NaN: as by fairchem, they are taken for none."""
        for task in self.tasks:
            label = batch[task.name]
            rows = label.reshape(len(label), -1).isnan().any(dim=1)
            if rows.any():
                of = batch.batch[rows] if task.level == "atom" else rows.nonzero().view(-1)
                named = "; ".join(name_structure(batch, i) for i in of.unique().tolist())
                logging.warning(f"label {task.name} is NaN and does not count in structure {named}")

    def join(self, batch: Any) -> dict[str, Tensor]:
        """Set the fields that objectives read: forces, energy, stress and ``corruptible``.

        They are infinite where there is no label. A structure with such an atom is not corruptible.

        Returns:
            The labels by task: a field may have had the name of one.
        """
        labels = {task.name: batch[task.name] for task in self.tasks}
        batch.forces, has_forces = self.joined("forces", batch)
        batch.energy = self.joined("energy", batch)[0].view(-1)
        if self.of("stress") and "stress" not in (task.name for task in self.tasks):
            batch.stress = self.joined("stress", batch)[0]
        allowed = torch.ones(len(batch.natoms), dtype=torch.bool, device=batch.pos.device)
        allowed[batch.batch[~has_forces]] = False
        if self.datasets is not None:
            chosen = [name in self.datasets for name in batch.dataset]
            allowed &= torch.tensor(chosen, device=allowed.device)
        setattr(batch, CORRUPTIBLE.name, allowed)
        return labels

    def joined(self, kind: str, batch: Any) -> tuple[Tensor, Tensor]:
        """Join the labels of a property.

        Returns:
            (n_atoms or n_structures, components), infinite where no task has a label, and the rows
            that have one: bool.
        """
        n = len(batch.pos) if kind == "forces" else len(batch.natoms)
        value = batch.pos.new_full((n, {"forces": 3, "energy": 1, "stress": 9}[kind]), torch.inf)
        for task in self.of(kind):
            label = batch[task.name].reshape(value.shape).to(value.dtype)
            value = torch.where(label.isfinite().all(dim=1, keepdim=True), label, value)
        return value, value.isfinite().all(dim=1)

    def route(
        self,
        labels: Mapping[str, Tensor],
        batch: Any,
        objective: Objective,
        progress: Progress,
    ) -> dict[str, list[Target]]:
        """Turn ``labels`` of a corrupted batch, by task, into those of the objective.

        The batch gets them, infinite outside of the rows that count.

        Returns:
            By task the target with its name, and by name those that the objective makes itself,
            one for each task from which it makes one.
        """
        found: dict[str, list[Target]] = {}
        for task in self.tasks:
            base = _base_target(task, labels[task.name], batch)
            for target in objective.targets([base], batch, progress):
                own = target.name == base.name
                found.setdefault(task.name if own else target.name, []).append(target)
                if own:
                    label = torch.where(target.rows[:, None], target.value, torch.inf)
                    batch[task.name] = label.view_as(labels[task.name])
        return found


def _base_target(task: Task, label: Tensor, batch: Any) -> Target:
    """Describe what fairchem would learn of a label of the uncorrupted structures."""
    level, loss = _LEVELS[task.level], task.loss_fn
    value = label.reshape(len(batch.pos) if level == "atom" else len(batch.natoms), -1)
    finite = value.isfinite()
    # of a stress any component may be missing
    present = finite.all(dim=1) if level == "atom" else finite.any(dim=1)
    free = batch.fixed == 0 if level == "atom" and task.train_on_free_atoms else present
    return Target(
        task.property,
        value=value,
        rows=present & free,
        level=level,
        weight=loss.coefficient,
        error=loss.loss_fn,
        summed=loss.reduction == "sum",
        per_structure=level == "atom" and loss.reduction == "per_structure",
        present=present,
    )


def joined_noise(targets: Sequence[Target]) -> Tensor:
    """Join the targets for the noise, infinite where it is not learned: (n_atoms, 3)."""
    rows = torch.stack([target.rows for target in targets]).any(dim=0)
    return torch.where(rows[:, None], targets[0].value, torch.inf)
