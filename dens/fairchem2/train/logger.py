"""The log of a unit: all that fairchem-core 2 logs, also in the files of the run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fairchem.core.units.mlip_unit.mlip_unit import Task

from dens.runs.figure_data import FigureData
from dens.runs.log import RunLog


class UnitLog:
    """Logger of a unit, which takes the place of fairchem's.

    Files are those of :class:`~dens.runs.log.RunLog`. Names of validation, such as
    ``val/oc20.val,forces,mae``, are kept, and their means over data sets and tasks are logged as
    well, as ``val/forces_mae``.

    Args:
        inner: fairchem's W&B logger, or None.
        folder: the run's log folder.
        config: the run's config.
        tasks: the tasks of evaluation.
        method: what the run is called in comparisons.
    """

    def __init__(
        self,
        inner: Any,
        folder: str,
        config: Mapping[str, Any],
        tasks: Sequence[Task],
        method: str,
    ) -> None:
        self.properties = {task.name: task.property for task in tasks}
        self.step, self.epoch = 0, 0.0  # of training, for what is logged without them
        self.validated: Mapping[str, Any] = {}  # metrics of the last validation
        self.inner = inner
        log = _Uncommitted(inner)
        to_wandb = inner is not None
        self.run = RunLog(log, folder, config, to_wandb=to_wandb, method=method, first_step=0)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet while the log is copied or unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

    def log(
        self, update_dict: Mapping[str, Any], step: int | None = None, commit: bool = False
    ) -> None:
        """Log what fairchem logs, under names such as ``train/loss``."""
        splits: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, value in update_dict.items():
            split, _, rest = name.rpartition("/") if name.count("/") == 1 else ("", "", name)
            splits[split][rest] = value
        if "val" in splits:
            # fairchem counts epochs of evaluation, of which there is never one
            splits["val"] |= self.by_property(splits["val"]) | {"epoch": self.epoch}
            self.validated = splits["val"]
        for split, values in splits.items():
            self.log_split(values, self.step if step is None else step, split)

    def by_property(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Average errors over data sets and tasks: ``forces_mae`` of ``oc20.val,forces,mae``."""
        found: dict[str, list[float]] = defaultdict(list)
        for name, value in values.items():
            _, task, metric = [*name.split(","), "", ""][:3]
            if task in self.properties:
                found[f"{self.properties[task]}_{metric}"].append(float(value))
        return {name: sum(errors) / len(errors) for name, errors in found.items()}

    def log_split(self, values: Mapping[str, Any], step: int, split: str) -> None:
        """Log numbers of a step; the split goes before their names."""
        self.run.log(values, step, split)

    def log_figures(self, data: FigureData, step: int, split: str) -> None:
        """Draw figures into the log folder, and log them."""
        self.run.log_figures(data, step, split)

    def log_summary(self, summary_dict: Mapping[str, Any]) -> None:
        """Log what holds for the whole run."""
        if self.inner is not None:
            self.inner.log_summary(summary_dict)


class _Uncommitted:
    """fairchem's W&B logger, so that more of the same step can follow; nothing without one."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def log(self, values: Mapping[str, Any], step: int, split: str) -> None:
        if self.inner is not None:
            self.inner.log(values, step=step, commit=False, split=split)

    def log_plots(self, plots: Sequence[Any]) -> None:
        """Drop images: without W&B they are in the run's files."""
