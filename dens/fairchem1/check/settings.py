"""Check the settings of a config, its inputs and the disk, for ``dens check``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dens.fairchem1.config.inputs import check_inputs
from dens.fairchem1.config.rules import find_class
from dens.fairchem1.config.sections import check_needed
from dens.fairchem1.config.settle import settle
from dens.objective import Objective
from dens.runs.check.findings import Findings
from dens.runs.check.memory import Footprint, in_words
from dens.settings import ConfigError


def check_settings(
    config: Mapping[str, Any], report: Findings
) -> tuple[Mapping[str, Any], Objective | None]:
    """Report mistakes in the config, and missing data or checkpoints.

    Returns:
        The settled config (as given, where it has mistakes), and what it trains, if dens does.
    """
    objective = None
    n_errors = report.count("error")
    with report.attempt("settings"):
        config = settle(config)
    with report.attempt("settings"):
        check_needed(config)
    with report.attempt("data"):
        check_inputs(config)
    with suppress(ConfigError):  # settle has reported what is wrong
        trainer = find_class("trainer", config.get("trainer", "ocp"), "trainer")
        if hasattr(trainer, "objective_class"):
            objective = trainer.parse_objective(config.get("optim") or {})
    if report.count("error") == n_errors:
        what = "no DeNS" if objective is None else objective.describe()
        report.ok("settings", f"trainer {config.get('trainer', 'ocp')}; {what}")
    return config, objective


def check_disk(run_dir: str | Path, footprint: Footprint, report: Findings) -> None:
    """Report whether checkpoints can be written to the run's folder."""
    folder = Path(run_dir).resolve()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        report.error("disk", f"{folder} is not writable (--run-dir)")
        return
    free, needed = shutil.disk_usage(folder).free, 3 * footprint.checkpoint
    detail = f"a checkpoint takes about {in_words(footprint.checkpoint)}, {in_words(free)} are free"
    if free < needed:  # the last one, the best one, and the one being written
        report.warn("disk", f"{detail} in {folder}: too little for three of them (--run-dir)")
    else:
        report.ok("disk", detail)
