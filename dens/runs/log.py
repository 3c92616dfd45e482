"""The log of a run: what goes to fairchem's logger is also written to the run's log folder."""

from __future__ import annotations

import io
import json
import os
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
from dens.runs.figure_data import FigureData
from dens.runs.figures import draw_all
from dens.runs.history import History, plain_numbers, read_history
from dens.runs.progress import Progress
from dens.runs.wandb_files import read_rows, run_files

_PACKAGES = ("fairchem-dens", "fairchem-core", "torch", "torch-geometric", "e3nn", "numpy", "wandb")


class RunLog:
    """Stands where fairchem's logger stood: W&B's, TensorBoard's or a project's own.

    Everything is passed on to that logger, and the numbers are kept in ``metrics.jsonl``
    (:mod:`dens.runs.history`) beside ``config.yml``, the settings of the run with the versions of
    what it runs on. A run that goes on from a checkpoint makes the steps after it anew: their
    lines are dropped when the first of them is logged.

    Args:
        inner: a fairchem logger; attributes that are not found here are its.
        folder: the run's log folder, ``cmd.logs_dir``.
        config: the trainer's config; ``logger.quiet: true`` in it switches the progress bar off.
        to_wandb: whether ``inner`` logs to the W&B run of this process.
        progress: what shows it; None for one that fits the terminal.
    """

    def __init__(
        self,
        inner: Any,
        folder: str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        to_wandb: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.inner, self.folder = inner, Path(folder)
        logger = (config or {}).get("logger")
        quiet = isinstance(logger, Mapping) and bool(logger.get("quiet", False))
        self.progress = Progress(quiet=quiet) if progress is None else progress
        self.history = History(self.folder / "metrics.jsonl")
        self._training = False
        facts = _facts(config or {})
        self._config = yaml.safe_dump(
            {**json.loads(json.dumps(config or {}, default=str)), **facts},
            sort_keys=False,
            allow_unicode=True,
        )
        if not (self.folder / "config.yml").exists():
            self._write_config()
        self._wandb = _WandBRun(self.folder, facts) if to_wandb and wandb.run is not None else None

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet: this is a copy in the making
            raise AttributeError(name)
        return getattr(self.inner, name)

    def log(self, update_dict: Mapping[str, Any], step: int, split: str = "") -> None:
        """Log numbers of a step; of a split, whose name is then put before theirs."""
        if split == "train" and not self._training:
            self._go_on_from(int(step))
        self.history.add(update_dict, step, split)
        self._pass_on(update_dict, step, split)
        if split == "train":
            self.progress.step(update_dict)

    def _pass_on(self, values: Mapping[str, Any], step: int, split: str) -> None:
        if self._wandb is not None:
            if step <= self._wandb.has:
                return
            self._wandb.define(values, split)
            values = {**values, "step": int(step)} if split else values
        self.inner.log(values, step=step, split=split)

    def _go_on_from(self, step: int) -> None:
        """Training begins with ``step``: forget what an earlier start has logged from there on."""
        self._training = True
        self.history.drop_from(step)
        self._write_config()
        if step > 1 and hasattr(self.inner, "writer"):  # TensorBoard hides those steps
            self.inner.writer.close()
            self.inner.writer = type(self.inner.writer)(str(self.folder), purge_step=step)
        if self._wandb is not None:  # a killed process takes with it what W&B had not written yet
            for line in read_history(self.history.path):
                values = {k: v for k, v in line.items() if k not in ("step", "split")}
                self._pass_on(values, line["step"], line["split"])

    def log_figures(self, data: FigureData, step: int, split: str) -> None:
        """Draw figures into the log folder and hand them to the logger.

        They lie in ``figures/SPLIT-STEP``, one PNG each, with the arrays behind them in
        ``data.npz``. A logger other than W&B's and TensorBoard's gets them as PIL images through
        its ``log_plots``.
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
            if step > self._wandb.has:
                self._wandb.log_figures(images, data, step, split)
        elif hasattr(self.inner, "writer"):
            for name, image in images.items():
                tag = f"{split}/figures/{name}"
                self.inner.writer.add_image(tag, np.asarray(image), step, dataformats="HWC")
        else:
            self.inner.log_plots(list(images.values()))

    def _write_config(self) -> None:
        temporary = self.folder / f"config.yml.{os.getpid()}.tmp"
        temporary.write_text(self._config, encoding="utf-8")
        os.replace(temporary, self.folder / "config.yml")


class _WandBRun:
    """The W&B run of this process: its axes, summaries and settings.

    Attributes:
        has: the last step of which an earlier start has left a row; -1 without one. Steps after a
            checkpoint are made again, and equal, when the run goes on from it: online W&B refuses
            them, offline it does not know what was written before.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        run = wandb.run
        self._defined: set[str] = set()
        self.has = run.starting_step - 1
        now = Path(run.settings.sync_file)
        for path in run_files(folder, run.id):
            if path != now:
                self.has = max([self.has, *(row["_step"] for row in read_rows(path))])
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
                self._defined.add(axis)
            wandb.define_metric(full, step_metric=axis, summary=summary_of(name))
            self._defined.add(full)

    def log_figures(
        self, images: Mapping[str, Image.Image], data: FigureData, step: int, split: str
    ) -> None:
        """Log images, and the structures in a form that can be turned in the browser."""
        media = {name: wandb.Image(image) for name, image in images.items()}
        for i, triple in enumerate(data.structures):
            for stage, atoms in triple.atoms().items():
                text = io.StringIO()
                ase.io.write(text, atoms, format="proteindatabank")
                text.seek(0)
                media[f"structure_{i}_{stage}"] = wandb.Molecule(text, file_type="pdb")
        # at the step: fairchem's log_plots names none, and would begin the next one
        wandb.log({f"{split}/figures/{name}": m for name, m in media.items()}, step=step)


def summary_of(name: str) -> str:
    """Which values of a metric W&B shows in its tables: errors by their least, for example.

    >>> summary_of("forces_mae"), summary_of("forces_cosine_similarity"), summary_of("lr")
    ('min,last', 'max,last', 'last')
    """
    if any(word in name for word in ("cosine", "explained_variance", "within_threshold")):
        return "max,last"
    if any(word in name for word in ("mae", "mse", "rmse", "loss", "error")):
        return "min,last"
    return "last"


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's config does not say: ``method``, to tell a baseline, and ``environment``."""
    dens_settings = config.get("optim", {}).get("dens") or {}
    method = "DeNS" if dens_settings.get("prob", 0) else "baseline"
    return {"method": method, "environment": environment()}


def environment() -> dict[str, Any]:
    """Versions of Python and of the packages, and the git commits of dens and of this folder."""
    versions = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    folders = {"dens": Path(dens.__file__).parent, "working_directory": Path.cwd()}
    return {"packages": versions, "git": {k: git_commit(v) for k, v in folders.items()}}


def git_commit(folder: Path) -> str | None:
    """The commit checked out in ``folder``, ``-dirty`` if files differ; None outside git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
