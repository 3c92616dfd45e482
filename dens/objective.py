"""Interface between a training method and its host: Objective, Target and Host.

A method (DeNS, MoreRed) says what a batch becomes and what is learned from it; a host (the trainer
of a framework) runs the steps. Neither knows the other's insides.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from dens.fields import Field
from dens.metrics import Ratio


class Progress(NamedTuple):
    """How far training has come at a step."""

    epoch: float  # with the fraction of the present one, the step included
    max_epochs: float
    structures: int  # in the training set

    @property
    def fraction(self) -> float:
        """The fraction of training, in [0, 1]."""
        return self.epoch / self.max_epochs

    @property
    def epochs_done(self) -> int:
        """The number of complete epochs before the step."""
        return max(math.ceil(self.epoch) - 1, 0)


@dataclass(frozen=True)
class Target:
    """Target of an output of the model: values, the rows that count, weight and error."""

    name: str  # of the output, and of the loss term
    value: Tensor  # (rows, components) | in units of the output
    rows: Tensor  # (rows,) bool | which count; the others may hold anything
    level: Literal["atom", "structure"]
    weight: float
    error: Callable[[Tensor, Tensor], Tensor]  # rows of outputs and targets -> (rows,)
    mean_over: Tensor | None = None  # (rows,) bool | which the mean runs over; None: those counted
    summed: bool = False  # over all ranks' rows, instead of a mean
    per_structure: bool = False  # the mean of the structures' means, instead of that of all atoms
    present: Tensor | None = None  # (rows,) bool | rows of the data with this label; None: all

    @property
    def count(self) -> Tensor:
        """The number of rows that the mean runs over, on this rank: () long."""
        return (self.rows if self.mean_over is None else self.mean_over).sum()

    def total(self, output: Tensor) -> Tensor:
        """Sum the error over the rows that count: ().

        Both sides are set to zero elsewhere before the error is taken, so that nothing there, not
        even NaN, reaches the sum or its gradient.
        """
        rows = self.rows[:, None]
        output = output.to(self.value.dtype)
        return self.error(torch.where(rows, output, 0), torch.where(rows, self.value, 0)).sum()


class Prediction(NamedTuple):
    """Outputs of a model for a batch, as a host hands them to a method for measuring."""

    values: Mapping[str, Tensor]  # those of the host's own targets in physical units
    rows: Mapping[str, Tensor]  # for each of these targets the rows that count in an evaluation


class Probe(NamedTuple):
    """A way to corrupt every structure of a validation set at one noise level."""

    objective: Objective
    sigma: float  # Å
    hidden: bool = False  # whether the model is not told what it is told in training


class Objective(ABC):
    """A method of training by denoising: what a batch becomes, and what is learned from it."""

    section: ClassVar[str]  # the key of its settings in the section ``optim`` of a config
    fields: ClassVar[tuple[Field, ...]]  # of a batch, set by `apply`
    makes: ClassVar[tuple[str, ...]] = ()  # targets that it makes itself, so that data need not
    in_validation: ClassVar[bool] = False  # whether the host's own validation is on corrupted data

    @abstractmethod
    def describe(self) -> str:
        """Describe the method and its main settings in a line."""

    def describe_phases(self, progress: Progress) -> str:
        """Say in which epochs structures are corrupted; nothing if in all of them."""
        return ""

    @abstractmethod
    def draws(self, batch: Any, streams: Iterable[torch.Generator], whole: torch.Generator) -> Any:
        """Draw the random numbers of a batch, on the CPU.

        Args:
            batch: a PyG batch.
            streams: a generator for each structure, which depends on neither rank nor batch.
            whole: a generator for what the structures of a batch share.
        """

    @abstractmethod
    def apply(self, batch: Any, draws: Any, progress: Progress) -> None:
        """Corrupt a batch in place and set :attr:`fields`; the last to touch ``batch.pos``."""

    def set_fields(self, batch: Any, values: Mapping[str, Tensor]) -> None:
        """Set :attr:`fields` of a batch to tensors that :meth:`apply` has made."""
        for field in self.fields:
            setattr(batch, field.name, values[field.name])

    @abstractmethod
    def targets(self, base: Sequence[Target], batch: Any, progress: Progress) -> list[Target]:
        """Turn the host's own targets (energy, forces, ...) into those of the corrupted batch."""

    def schedule(self, progress: Progress) -> dict[str, float]:
        """Return the settings that change in training, as they are at a step, for the log."""
        return {}

    @abstractmethod
    def metrics(self, prediction: Prediction, batch: Any) -> dict[str, Ratio]:
        """Measure the predictions for a corrupted batch, by name; only what has any element."""

    @abstractmethod
    def metric_names(self) -> list[str]:
        """List all names that :meth:`metrics` may return."""

    @abstractmethod
    def ordinary(self, batch: Any) -> Tensor:
        """Select structures on which the host's own metrics make sense: (n_structures,) bool."""

    @abstractmethod
    def corrupted_atoms(self, batch: Any) -> Tensor:
        """Select the atoms with noise: (n_atoms,) bool."""

    @abstractmethod
    def noise(self, values: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Tensor]:
        """Return the noise predicted by ``values`` and the true one, both (n_atoms, 3), Å."""

    @property
    @abstractmethod
    def sigmas(self) -> Sequence[float]:
        """The noise levels at which a validation set is denoised by default, Å, lowest first."""

    @property
    @abstractmethod
    def typical_sigma(self) -> float:
        """The noise level that figures show, Å."""

    @abstractmethod
    def corrupting_all(self, sample: Any) -> Objective | None:
        """Return the objective that corrupts every structure of data such as ``sample``.

        None if nothing is ever corrupted.
        """

    @abstractmethod
    def probes(self, sigmas: Iterable[float], sample: Any) -> list[Probe]:
        """List the ways in which a validation set is corrupted, for data such as ``sample``."""


class Host(Protocol):
    """Interface of a trainer for monitoring and evaluation."""

    objective: Objective
    progress: Progress
    step: int
    device: torch.device

    def predict_batch(self, batch: Any) -> Prediction:
        """Compute the model's outputs for a batch on the device; collective over ranks."""

    def collate(self, records: Sequence[Any]) -> Any:
        """Make a batch of records."""

    def evaluating(self) -> AbstractContextManager:
        """Use evaluation mode and the averaged weights within a ``with`` block."""

    def log(self, values: Mapping[str, float], split: str) -> None:
        """Log values of the present step."""

    def log_figures(self, data: Any, split: str) -> None:
        """Draw and log the figures of an evaluation."""
