"""A training unit of fairchem-core 2 as the host of a monitor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from fairchem.core.common import distutils
from fairchem.core.units.mlip_unit.utils import tf32_context_manager
from torch import Tensor

from dens.fairchem2.attach import NOISE, whole_graph
from dens.fairchem2.task_labels import Labels
from dens.fairchem2.train.logger import UnitLog
from dens.objective import Objective, Prediction, Progress
from dens.runs.figure_data import FigureData


class Unit(Protocol):
    """Interface of a training unit that its host reads."""

    objective: Objective
    labels: Labels
    eval_unit: Any  # fairchem's
    logger: UnitLog | None
    tf32: bool


class ListedRecords:
    """Data set of fairchem-core 2 that can also be read by lists of numbers."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Any:
        return self.dataset[number]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        return [self.dataset[number] for number in numbers]


class UnitHost:
    """Host of the measurements of a unit, see :class:`~dens.objective.Host`.

    Evaluation is by the unit's evaluation model, which is the moving average if there is one.
    """

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.progress = Progress(0.0, 1.0, 0)  # of the last step
        self.step = 0  # number of the last step, from 0 as fairchem counts
        self.stock_collate: Callable[[Sequence[Any]], Any] | None = None  # of the validation set

    @property
    def objective(self) -> Objective:
        return self.unit.objective

    @property
    def device(self) -> torch.device:
        return torch.device(distutils.get_device_for_local_rank())

    def collate(self, records: Sequence[Any]) -> Any:
        """Make a batch of records, with the labels that an objective reads."""
        batch = self.stock_collate(records)
        self.unit.labels.join(batch)
        return batch

    def predict_batch(self, batch: Any) -> Prediction:
        with tf32_context_manager(self.unit.tf32):
            outputs = self.unit.eval_unit.model(batch)
        values = {t.name: outputs[t.name][t.property].detach() for t in self.unit.labels.tasks}
        if outputs.get(NOISE):
            values[NOISE] = outputs[NOISE]["noise"].detach()
        return self.in_physical_units(values, batch)

    def in_physical_units(self, outputs: Mapping[str, Tensor], batch: Any) -> Prediction:
        """Join the outputs of tasks by their property, and say which rows an evaluation counts.

        Args:
            outputs: by task, as the model gives them; none for the noise is zero noise.
            batch: with the fields of :meth:`~dens.fairchem2.task_labels.Labels.join`.
        """
        whole_graph(batch)
        n_structures = len(batch.natoms)
        values = {
            "forces": torch.zeros_like(batch.pos.detach()),
            "energy": batch.pos.new_zeros(n_structures),
            "noise": outputs.get(NOISE, torch.zeros_like(batch.pos.detach())),
        }
        rows = {"forces": batch.fixed < 0, "energy": batch.natoms < 0}
        for task in self.unit.labels.tasks:
            if task.property not in rows:
                continue
            here = torch.tensor([name in task.datasets for name in batch.dataset])
            here = here.to(batch.pos.device)
            atoms = here[batch.batch]
            value = task.normalizer.denorm(outputs[task.name])
            if task.property == "energy":
                value = value.view(-1)
                if task.element_references is not None:
                    value = task.element_references.undo_refs(batch, value)
                rows["energy"] |= here & batch.energy.isfinite()
                values["energy"] = torch.where(here, value.to(batch.pos.dtype), values["energy"])
            else:
                counts = batch.fixed == 0 if task.eval_on_free_atoms else atoms
                rows["forces"] |= atoms & counts & batch.forces.isfinite().all(dim=1)
                value = value.view(-1, 3).to(batch.pos.dtype)
                values["forces"] = torch.where(atoms[:, None], value, values["forces"])
        return Prediction(values, rows)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Use evaluation mode within the block."""
        model = self.unit.eval_unit.model
        was_training = model.training
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)

    def log(self, values: Mapping[str, float], split: str) -> None:
        if self.unit.logger is not None:
            self.unit.logger.log_split(values, self.step, split)

    def log_figures(self, data: FigureData, split: str) -> None:
        if self.unit.logger is not None:
            self.unit.logger.log_figures(data, self.step, split)
