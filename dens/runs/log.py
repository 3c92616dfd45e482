"""The log of a run: all that goes to fairchem's logger, also written to the run's log folder."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import wandb
import yaml
from PIL import Image

import dens
from dens.files import atomic_file
from dens.metrics import find_metric
from dens.runs.figure_data import FigureData
from dens.runs.figures import draw_all
from dens.runs.history import History, plain_numbers, read_history
from dens.runs.terminal.evaluations import Evaluations
from dens.runs.terminal.output import show
from dens.runs.terminal.progress import Plan, Progress
from dens.runs.wandb_files import last_step, run_files

_PACKAGES = ("fairchem-dens", "fairchem-core", "torch", "torch-geometric", "e3nn", "numpy", "wandb")
_SUMMARIES = {"lower": "min,last", "higher": "max,last", None: "last"}  # in W&B's tables


class RunLog:
    """Logger that wraps fairchem's (W&B, TensorBoard or a project's own) and keeps files as well.

    Numbers go to ``metrics.jsonl`` (:mod:`dens.runs.history`), settings and versions to
    ``config.yml``. When a run resumes, it repeats the steps after its checkpoint: their old lines
    are dropped when the first of them is logged.

    Args:
        inner: the fairchem logger, to which everything is passed on; it also provides all
            attributes that are not found here.
        folder: the run's log folder, ``cmd.logs_dir``.
        config: the trainer's config; ``logger.quiet: true`` in it switches the progress bar off.
        to_wandb: whether ``inner`` logs to the W&B run of this process.
        method: what the run is called in comparisons; None: DeNS or baseline, by ``optim.dens``.
        first_step: the number of a run's first step.
    """

    def __init__(
        self,
        inner: Any,
        folder: str | Path,
        config: Mapping[str, Any],
        *,
        to_wandb: bool = False,
        method: str | None = None,
        first_step: int = 1,
    ) -> None:
        self.inner, self.folder = inner, Path(folder)
        config = json.loads(json.dumps(config, default=str))
        settings = config.get("logger")
        quiet = isinstance(settings, Mapping) and bool(settings.get("quiet", False))
        self.progress, self.evaluations = Progress(quiet=quiet), Evaluations()
        self.first_step = first_step
        self.history = History(self.folder / "metrics.jsonl")
        self._training = False
        facts = _facts(method or _method(config))
        self._config = {**config, **facts}
        if not (self.folder / "config.yml").exists():
            self._write_config()
        self._wandb = _WandBRun(self.folder, facts) if to_wandb and wandb.run is not None else None

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet while the log is copied or unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

    def log(self, update_dict: Mapping[str, Any], step: int, split: str = "") -> None:
        """Log the numbers of a step; loggers put the split before their names."""
        if split == "train" and not self._training:
            self._begin_training(int(step))
        self.history.add(update_dict, step, split)
        self._pass_on(update_dict, step, split)
        if split == "train":
            self.evaluations.complete()
            self.progress.step(update_dict, self.first_step)
        elif split == "val":
            self.evaluations.add(update_dict, int(step) - self.first_step + 1)

    def plan(self, plan: Plan, primary: str) -> None:
        """Take note of the length of training, and of the metric that decides which is the best."""
        self.progress.plan, self.evaluations.primary = plan, primary

    def evaluated(self) -> None:
        """Print the evaluation just logged; else this waits for the next training step."""
        self.evaluations.complete()

    def finish(self) -> None:
        """End the progress bar, and print the table of evaluations."""
        self.progress.close()
        self.evaluations.complete()
        if table := self.evaluations.table():
            show(f"\n{table}\n")

    def _pass_on(self, values: Mapping[str, Any], step: int, split: str) -> None:
        if self._wandb is not None:
            if step <= self._wandb.last_step:
                return
            self._wandb.define(values, split)
            values = {**values, "step": int(step)} if split else values
        self.inner.log(values, step=step, split=split)

    def _begin_training(self, step: int) -> None:
        """Drop logged lines from ``step`` onwards, which a resumed run logs again."""
        self._training = True
        self.history.drop_from(step)
        first = self.first_step
        earlier = (line for line in read_history(self.history.path) if line["split"] == "val")
        primary = self.evaluations.primary
        self.evaluations = Evaluations([{**v, "step": v["step"] - first + 1} for v in earlier])
        self.evaluations.primary = primary
        self._write_config()
        if step > 1 and hasattr(self.inner, "writer"):  # TensorBoard hides those steps
            self.inner.writer.close()
            self.inner.writer = type(self.inner.writer)(str(self.folder), purge_step=step)
        if self._wandb is not None:  # log again what W&B had not written when it was killed
            for line in read_history(self.history.path):
                values = {k: v for k, v in line.items() if k not in ("step", "split")}
                self._pass_on(values, line["step"], line["split"])

    def log_figures(self, data: FigureData, step: int, split: str) -> None:
        """Draw figures into the log folder and pass them to the logger.

        The folder ``figures/SPLIT-STEP`` gets a PNG for each, and the arrays in ``data.npz``. A
        logger other than W&B's and TensorBoard's gets PIL images through its ``log_plots``.
        """
        folder = self.folder / "figures" / f"{split}-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        data.save(folder / "data.npz")
        images = {}
        for name, figure in draw_all(data).items():
            figure.savefig(folder / f"{name}.png")
            with Image.open(folder / f"{name}.png") as image:
                images[name] = image.convert("RGB")
        if self._wandb is not None:
            if step > self._wandb.last_step:
                self._wandb.log_figures(images, data, step, split)
        elif hasattr(self.inner, "writer"):
            for name, image in images.items():
                tag = f"{split}/figures/{name}"
                self.inner.writer.add_image(tag, np.asarray(image), step, dataformats="HWC")
        else:
            self.inner.log_plots(list(images.values()))

    def _write_config(self) -> None:
        text = yaml.safe_dump(self._config, sort_keys=False, allow_unicode=True)
        with atomic_file(self.folder / "config.yml") as file:
            file.write(text.encode())


class _WandBRun:
    """The W&B run of this process: its axes, summaries and settings.

    Attributes:
        last_step: the last step that an earlier start has logged; -1 without one. Steps repeated
            on resume are not logged again: W&B refuses them online, and would keep both offline.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        run = wandb.run
        self._defined: set[str] = set()
        self.last_step = run.starting_step - 1
        try:
            earlier = {*run_files(folder, run.id)} - {Path(run.settings.sync_file)}
            self.last_step = max([self.last_step, *map(last_step, earlier)])
        except Exception as error:  # the files' format is W&B's own, and may change
            logging.warning(
                f"W&B's files of earlier starts in {folder / 'wandb'} cannot be read, so steps "
                f"repeated on resume may be logged to W&B twice: {error}"
            )
        run.config.update(dict(facts), allow_val_change=True)

    def define(self, values: Mapping[str, Any], split: str) -> None:
        """Give the metrics of ``split`` their axis and summary."""
        axis = f"{split}/step"
        for name in plain_numbers(values):
            full = f"{split}/{name}"
            if split == "" or full in self._defined or full == axis:
                continue
            if axis not in self._defined:
                wandb.define_metric(axis, hidden=True, summary="last")
            summary = _SUMMARIES[find_metric(name).better]
            wandb.define_metric(full, step_metric=axis, summary=summary)
            self._defined |= {axis, full}

    def log_figures(
        self, images: Mapping[str, Image.Image], data: FigureData, step: int, split: str
    ) -> None:
        """Log images, and the structures in a form that can be rotated in the browser."""
        media = {name: wandb.Image(image) for name, image in images.items()}
        for i, structure in enumerate(data.structures):
            for stage, atoms in structure.atoms().items():
                text = io.StringIO()
                ase.io.write(text, atoms, format="proteindatabank")
                text.seek(0)
                media[f"structure_{i}_{stage}"] = wandb.Molecule(text, file_type="pdb")
        # with the step, which fairchem's log_plots leaves out: W&B would begin the next one
        wandb.log({f"{split}/figures/{name}": m for name, m in media.items()}, step=step)


def _method(config: Mapping[str, Any]) -> str:
    """Return what a config of fairchem-core 1.10 trains: DeNS or baseline."""
    settings = config.get("optim", {}).get("dens") or {}
    return "DeNS" if settings.get("prob", 0) else "baseline"


def _facts(method: str) -> dict[str, Any]:
    """Collect the method, the versions of packages and the git commits."""
    versions = {"python": sys.version.split()[0], **{name: _version(name) for name in _PACKAGES}}
    commits = {"dens": _git_commit(Path(dens.__file__).parent)}
    commits["working_directory"] = _git_commit(Path.cwd())
    return {
        "method": method,
        "environment": {"packages": versions, "git": commits},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit(folder: Path) -> str | None:
    """Return the commit checked out in ``folder``, ``-dirty`` if files differ; None outside git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
