"""DeNS in fairchem-core 2's training unit: two changed lines of a stock config.

.. code-block:: yaml

    train_eval_unit:
      _target_: dens.fairchem2.DeNSTrainEvalUnit
      dens: {prob: 0.5, sigma: 0.1, corrupt_ratio: 0.5, denoising_coefficient: 10.0}

Everything else of the config stays stock; so do evaluation and the checkpoints for inference.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.modules.normalization.normalizer import Normalizer
from fairchem.core.units.mlip_unit.mlip_unit import (
    UNIT_INFERENCE_CHECKPOINT,
    MLIPTrainEvalUnit,
    OutputSpec,
    Task,
    TrainStrategy,
)
from omegaconf import OmegaConf
from torch import Tensor

from dens.denoising.config import parse_config
from dens.denoising.objective import DeNSObjective
from dens.fairchem2.attach import NOISE, attach_dens
from dens.fairchem2.inference_checkpoint import make_stock
from dens.fairchem2.task_labels import Labels, joined_noise
from dens.fairchem2.train.loss_terms import Term, TermLoss, check_loss, make_parts
from dens.fairchem2.train.monitored import MonitoredSteps
from dens.random import Stream, structure_key
from dens.settings import ConfigError

_SECTION = "runner.train_eval_unit"


class DeNSUnitMixin(MonitoredSteps):
    """Mixin that adds DeNS to a unit: ``class MyUnit(DeNSUnitMixin, MLIPTrainEvalUnit)``.

    The model is a stock one; force encoding and noise head are attached to it. Training batches are
    corrupted on the CPU; evaluation is the parent's, on clean structures.

    Args:
        dens: the settings of :class:`~dens.denoising.config.DeNSConfig`.
        sigma_encoding: whether the model is told the noise level.
        dens_datasets: the data sets whose structures may be corrupted; null: all.
        kwargs: those of :class:`~dens.fairchem2.train.monitored.MonitoredSteps`, of
            :class:`~dens.fairchem2.train.steps.ReproducibleSteps` and of the parent.

    Raises:
        ConfigError: wrong settings, or a model or tasks that DeNS does not fit.
    """

    objective: DeNSObjective
    labels: Labels
    _dens_terms: dict[str, Term]  # of the present step's loss
    _dens_losses: dict[str, TermLoss]

    def __init__(
        self,
        job_config: Any,
        model: torch.nn.Module,
        optimizer_fn: Any,
        cosine_lr_scheduler_fn: Any,
        tasks: Sequence[Task],
        dens: Mapping[str, Any],
        sigma_encoding: bool = False,
        dens_datasets: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        strategy = kwargs.get("train_strategy", TrainStrategy.DDP)
        if strategy != TrainStrategy.DDP:
            raise ConfigError(
                f"train_strategy must be ddp with DeNS, got {strategy} ({_SECTION}.train_strategy)"
            )
        settings = OmegaConf.to_container(dens) if OmegaConf.is_config(dens) else dens
        objective = DeNSObjective(parse_config(settings, f"{_SECTION}.dens"))
        trained = [task for task in tasks if not task.inference_only]
        labels = Labels(trained, dens_datasets)
        labels.check(objective.config)
        for task in trained:
            check_loss(task)
        attach_dens(model, sigma_encoding=sigma_encoding)
        super().__init__(
            job_config=job_config,
            model=model,
            optimizer_fn=optimizer_fn,
            cosine_lr_scheduler_fn=cosine_lr_scheduler_fn,
            tasks=tasks,
            **kwargs,
        )
        self.objective, self.labels = objective, labels
        self._dens_terms = {}
        # the unit of evaluation keeps the user's tasks; the noise is the last of training
        names = [task.name for task in trained] + [NOISE]
        self._dens_losses = {name: TermLoss(name, self._dens_terms) for name in names}
        self._dens_losses[NOISE].complete = self.after_loss
        learned = [_with_loss(task, self._dens_losses[task.name]) for task in trained]
        self.tasks = [*learned, _noise_task(self._dens_losses[NOISE])]
        self.start_log("DeNS" if objective.config.prob > 0 else "baseline")

    def train_step(self, state: Any, data: Any) -> None:
        """Corrupt a batch, which comes on the CPU, and train on it."""
        progress = self.begin_step(state)
        self.labels.note_nan(data)
        labels = self.labels.join(data)
        self.objective.apply(data, self._draws(data), progress)
        targets = self.labels.route(labels, data, self.objective, progress)
        targets[NOISE] = targets.pop("noise")
        data[NOISE] = joined_noise(targets[NOISE])
        device = torch.device(distutils.get_device_for_local_rank())
        for name, parts in make_parts(targets, data, device).items():
            self._dens_losses[name].parts = parts
        try:
            with self.reproducible_step(data):
                super().train_step(state, data)
            self.end_step(data)
        finally:
            self._dens_terms.clear()

    def step_terms(self) -> dict[str, Tensor]:
        """Return the weighted terms of the present step's loss on this rank, by name."""
        return {_term_name(name): term.loss for name, term in self._dens_terms.items()}

    def step_loss(self) -> Tensor:
        return torch.stack([loss.detach() for loss in self.step_terms().values()]).sum()

    def step_outputs(self) -> dict[str, Tensor]:
        return {name: term.prediction for name, term in self._dens_terms.items()}

    def _draws(self, data: Any) -> Any:
        """Draw the random numbers of a batch: functions of the seed, the step and each structure.

        So neither the number of ranks nor the place in a batch matters. Not of the epoch, since
        fairchem may take a structure several times in one.
        """
        seed, step = self.seed, self.train_progress.num_steps_completed
        sizes = data.natoms.tolist()
        structures = zip(data.atomic_numbers.split(sizes), data.pos.split(sizes), strict=True)
        keys = [structure_key(numbers, pos) for numbers, pos in structures]
        streams = [Stream.STRUCTURES.generator(seed, step, key) for key in keys]
        return self.objective.draws(data, streams, Stream.BATCHES.generator(seed, step))

    def save_state(self, checkpoint_location: str) -> None:
        """Save a checkpoint to resume from, and that for inference as one of the stock model."""
        super().save_state(checkpoint_location)
        path = os.path.join(checkpoint_location, UNIT_INFERENCE_CHECKPOINT)
        if self.save_inference_ckpt and distutils.is_master() and os.path.exists(path):
            make_stock(path)


def _term_name(task: str) -> str:
    """Name the loss term of a task."""
    return "noise" if task == NOISE else task


def _with_loss(task: Task, loss: TermLoss) -> Task:
    """Copy a task, which may be OmegaConf's picture of one, with another loss."""
    values = {field.name: getattr(task, field.name) for field in fields(Task)}
    return Task(**{**values, "loss_fn": loss})


def _noise_task(loss: TermLoss) -> Task:
    """Make the task of the noise divided by s_N, of fixed atoms too if they are corrupted."""
    return Task(
        name=NOISE,
        level="atom",
        property="noise",
        out_spec=OutputSpec([3], "float32"),
        normalizer=Normalizer(mean=0.0, rmsd=1.0),
        datasets=[],
        loss_fn=loss,
        train_on_free_atoms=False,
    )


class DeNSTrainEvalUnit(DeNSUnitMixin, MLIPTrainEvalUnit):
    """fairchem's training unit with DeNS."""
