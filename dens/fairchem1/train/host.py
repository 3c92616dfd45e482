"""Run an objective in a fairchem trainer: corrupt batches, compute its loss, monitor it.

The loops (training, validation, prediction), data loading, checkpoints and loggers are inherited
from fairchem.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor

from dens import transfer
from dens.data.batches import WithSampleId
from dens.data.checked import checked
from dens.fairchem1.checkpoints.start import Pretrained, load_from, take_pretrained
from dens.fairchem1.checkpoints.state import ElementRecord
from dens.fairchem1.config.read import SPLITS
from dens.fairchem1.config.rules import metric_names
from dens.fairchem1.config.settle import settle
from dens.fairchem1.data.safe_lmdb import use_safe_formats
from dens.fairchem1.model.graph_parallel import sum_shared_gradients
from dens.fairchem1.train.logger import with_run_log
from dens.fairchem1.train.loss_terms import LossTerms
from dens.fairchem1.train.step_metrics import TrainingMetrics
from dens.fairchem1.train.steps import ReproducibleSteps
from dens.fields import SAMPLE_ID
from dens.objective import Objective, Prediction, Progress
from dens.process import keep_freed_memory
from dens.random import Stream
from dens.ranks import world_size
from dens.runs.figure_data import FigureData
from dens.runs.log import RunLog
from dens.runs.monitor.denoise import best_weights
from dens.runs.monitor.settings import parse_monitor
from dens.runs.monitor.training import TrainingMonitor
from dens.runs.monitor.validation import Schedule
from dens.settings import ConfigError


class ObjectiveMixin(TrainingMetrics, LossTerms, ReproducibleSteps):
    """Mixin that trains an objective with a fairchem trainer; it is a ``Host`` of its monitor.

    Subclasses say what a method needs: :meth:`parse_objective`, :meth:`required_fields`, ...

    Raises:
        ConfigError: wrong settings, before any data are read; data without a field that the
            objective reads, before the first step.
    """

    objective_class: type[Objective]
    config_checks: tuple[Callable[[Mapping[str, Any]], object], ...] = ()  # before data are read
    default_metric: str  # which decides the best checkpoint where the config names none
    objective: Objective
    monitor: TrainingMonitor | None = None  # until data and model are loaded
    pretrained: Pretrained
    checkpoint_notices: tuple[str, ...] = ()

    def __init__(self, *, model: dict, optimizer: dict, task: dict, **kwargs: Any) -> None:
        config = settle({"model": model, "optim": optimizer, "task": task, **kwargs}, type(self))
        self.objective = self.parse_objective(config["optim"])
        model, self.pretrained = take_pretrained(config["model"])
        sum_shared_gradients()
        task = config["task"]
        if self.pretrained.path is not None:
            task = {**task, "pretrained": self.pretrained.model_dump()}
        super().__init__(model=model, optimizer=config["optim"], task=task, **kwargs)
        if self.device.type == "cpu":
            keep_freed_memory()

    # ---- what a method says -----------------------------------------------------------------

    @classmethod
    def parse_objective(cls, optim: Mapping[str, Any]) -> Objective:
        """Make the objective that a settled ``optim`` section describes."""
        raise NotImplementedError

    def required_fields(self) -> dict[str, str]:
        """Return the fields that training data must have, each with the reason as a clause."""
        return {}

    # ---- fairchem's stages of loading -------------------------------------------------------

    def load(self, inference_only: bool) -> None:
        super().load(inference_only)
        if self.pretrained.path is not None:
            self.load_checkpoint(self.pretrained.path)

    def load_checkpoint(
        self, checkpoint_path: str, checkpoint: dict | None = None, inference_only: bool = False
    ) -> None:
        """Resume a checkpoint of dens, or start from the weights of any other model."""
        parent = super().load_checkpoint
        load_from(self, parent, checkpoint_path, checkpoint, inference_only)
        self.forget_host_modules()

    def load_optimizer(self) -> None:
        super().load_optimizer()
        self.element_record = ElementRecord.of(self._unwrapped_model, self.optimizer)

    def notify_checkpoint(self, notice: str) -> None:
        """Log how a checkpoint changed or extended what the config says."""
        self.checkpoint_notices += (notice,)
        if distutils.is_master():
            logging.warning(notice)

    def rebuild_model(self, section: dict[str, Any]) -> None:
        """Build the model, optimizer and schedule again, with another ``model`` section."""
        self.config["model"] = section
        self.load_model()
        if hasattr(self, "optimizer"):
            self.load_optimizer()
            self.load_extras()

    def load_logger(self) -> None:
        super().load_logger()
        if self.logger is not None and not isinstance(self.logger, RunLog):
            self.logger = with_run_log(self.logger, self.config)

    def load_extras(self) -> None:
        super().load_extras()
        self.monitor = self.make_monitor()

    def make_monitor(self) -> TrainingMonitor:
        """Make a monitor of this run, with the settings ``optim.watch``."""
        optim, loader = self.config["optim"], self.train_loader
        figures = not self.is_debug and loader is not None
        schedule = Schedule(
            seed=self.config["cmd"]["seed"] or 0,
            rank=self.data_rank(),
            ranks=self.data_world_size(),
            batch_size=optim.get("eval_batch_size", optim.get("batch_size", 1)),
            evaluate_every=optim.get("eval_every", len(loader)) if figures else None,
        )
        backbone = getattr(self._unwrapped_model, "backbone", self._unwrapped_model)
        return TrainingMonitor(self, parse_monitor(optim), schedule, backbone)

    def load_task(self) -> None:
        super().load_task()
        for target in self.output_targets.values():  # fairchem reads both, without a default
            target.setdefault("train_on_free_atoms", True)
            target.setdefault("eval_on_free_atoms", True)
        if self.evaluation_metrics.get("primary_metric") is None:
            names = metric_names(self.evaluation_metrics.get("metrics") or {})
            default = self.default_metric
            if names and default not in names:
                default = names[0]
            self.evaluation_metrics["primary_metric"] = default
            if distutils.is_master():
                logging.warning(
                    f"evaluation_metrics.primary_metric is not set: {default} decides which is the "
                    "best checkpoint"
                )

    def load_datasets(self) -> None:
        use_safe_formats(self.config)
        super().load_datasets()
        if self.train_loader is None:
            return
        sample = self.train_dataset[0]
        for field, why in self.required_fields().items():
            if getattr(sample, field, None) is None:
                raise ConfigError(
                    f"the data in {self.config['dataset']['src']} have no {field}, {why}; they "
                    f"have {', '.join(sorted(sample.keys()))}"
                )

    def get_dataloader(self, dataset, sampler, workers: int | None = None):
        sets = {name: getattr(self, f"{name}_dataset", None) for name in SPLITS}
        split = next((name for name, known in sets.items() if known is dataset), None)
        dataset = checked(dataset, split, self.config)
        if split == "train" or self.objective.in_validation:
            dataset = WithSampleId(dataset)
        return super().get_dataloader(dataset, sampler, workers)

    # ---- the host of a monitor --------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        """How far training has come."""
        structures = len(self.train_dataset or ())
        return Progress(self.epoch, self.config["optim"]["max_epochs"], structures)

    def predict_batch(self, batch) -> Prediction:
        with torch.autocast("cuda", enabled=self.scaler is not None):  # as fairchem evaluates
            out = self.forward_micro_batch(batch)
        return self.in_physical_units(out, batch)

    def in_physical_units(self, out: Mapping[str, Tensor], batch) -> Prediction:
        """Convert outputs that have normalisers, and say which rows an evaluation counts."""
        values = {name: value.detach() for name, value in out.items()}
        rows = {}
        for name in self.output_targets.keys() & values.keys():
            values[name] = self._denorm_preds(name, values[name], batch)
            rows[name] = self._counted(name, batch, "eval_on_free_atoms")
        return Prediction(values, rows)

    def collate(self, records: Sequence[Any]) -> Any:
        return self.collater(records)

    def evaluating(self) -> AbstractContextManager:
        return best_weights(self)

    def log(self, values: Mapping[str, float], split: str) -> None:
        if self.logger is not None:
            self.logger.log(values, step=self.step, split=split)

    def log_figures(self, data: FigureData, split: str) -> None:
        if hasattr(self.logger, "log_figures"):
            self.logger.log_figures(data, self.step, split)

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> dict[str, Any]:
        with self.validating():
            metrics = super().validate(split, disable_tqdm)
        if self.monitor is not None:
            dataset = getattr(self, f"{split}_loader").dataset  # of validated records
            self.after_validation(split, dataset)
        if isinstance(self.logger, RunLog):
            self.logger.evaluated()
        return metrics

    def after_validation(self, split: str, dataset: Any) -> None:
        """Measure and log what a validation on clean structures does not tell."""
        if self.monitor is not None:
            self.monitor.after_validation(split, dataset)

    # ---- one training step ------------------------------------------------------------------

    def _forward(self, batch) -> dict[str, Tensor]:
        if not self.model.training:
            batch = batch.to(self.device)
            if self._validating and self.objective.in_validation:
                self.corrupt_batch(batch, self._draws(batch))
            with self.precision():
                return self.in_full(super()._forward(batch))
        self.begin_step()
        self.corrupt_batch(batch, self._draws(batch))  # where the loader left it, on the host
        batch = transfer.to_device(batch, self.device)
        self._counts = self._count_on_all_ranks(batch)
        return self.forward_in_micro_batches(batch)

    def _draws(self, batch) -> Any:
        """Draw the random numbers of a batch: functions of the seed, the epoch and a sample id.

        So neither the number of ranks nor the place in a batch matters. Those of validation are the
        same every time.
        """
        seed, ids = self.config["cmd"]["seed"] or 0, self._sample_ids(batch)
        if self.model.training:
            epoch, whole = self.progress.epochs_done, Stream.BATCHES.generator(seed, self.step)
            streams = [Stream.STRUCTURES.generator(seed, epoch, i) for i in ids]
        else:
            streams = [Stream.VALIDATION.generator(seed, i) for i in ids]
            whole = Stream.VALIDATION.generator(seed)
        return self.objective.draws(batch, streams, whole)

    def _sample_ids(self, batch) -> list[int]:
        if SAMPLE_ID.name in batch:
            return batch[SAMPLE_ID.name].tolist()
        # not from the training loader: make ids that are unique in this step
        n_structures = len(batch.natoms)
        first = (self.step * world_size() + self.data_rank()) * n_structures
        return list(range(first, first + n_structures))

    def corrupt_batch(self, batch, draws: Any) -> None:
        """Corrupt a batch in place, as the objective and the random numbers say."""
        self.objective.apply(batch, draws, self.progress)

    def forward_micro_batch(self, batch) -> dict[str, Tensor]:
        """Compute the outputs of a corrupted batch."""
        with self.precision():
            return self.in_full(super()._forward(batch))

    def _compute_metrics(self, out, batch, evaluator, metrics=None) -> dict[str, Any]:
        metrics = super()._compute_metrics(out, batch, evaluator, metrics)
        if self.model.training and self.monitor is not None:
            self.monitor.step(batch, counts=self.counts_batch())
        return metrics
