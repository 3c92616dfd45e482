"""A progress bar for each epoch, in a terminal; elsewhere fairchem's plain lines."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_SHOWN = {
    "loss": "loss",
    "forces_mae": "F",
    "energy_mae": "E",
    "denoising_pos_mae": "noise",
    "denoising_energy_mae": "E noisy",
}


class Progress:
    """Shows how far training is, from what it logs.

    Args:
        quiet: neither a bar nor fairchem's lines of training metrics.
        bar: whether to show bars; None: in a terminal that no batch system watches.
    """

    def __init__(self, *, quiet: bool = False, bar: bool | None = None) -> None:
        if bar is None:
            bar = sys.stderr.isatty() and "SLURM_JOB_ID" not in os.environ
        self._shows_bar = bar and not quiet
        self._bar: tqdm | None = None
        self._epoch = -1
        self._open = ExitStack()
        if quiet or bar:
            logging.getLogger().addFilter(_no_training_metrics)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """A training step was logged; ``metrics`` have its ``step`` and ``epoch``."""
        if not self._shows_bar or not {"step", "epoch"} <= metrics.keys():
            return
        step, epoch = int(metrics["step"]), float(metrics["epoch"])
        steps = max(round(step / epoch), 1)  # of an epoch
        number = math.ceil(step / steps) - 1
        if number != self._epoch:
            self.close()
            self._begin(number, steps)
        done = step - number * steps
        self._bar.update(done - self._bar.n)
        found = {text: f"{float(metrics[k]):.3g}" for k, text in _SHOWN.items() if k in metrics}
        self._bar.set_postfix(found, refresh=False)
        if done == steps:
            self.close()

    def _begin(self, number: int, steps: int) -> None:
        self._epoch = number
        # log lines go above the bar
        self._open.enter_context(logging_redirect_tqdm())
        self._bar = self._open.enter_context(
            tqdm(total=steps, desc=f"epoch {number + 1}", dynamic_ncols=True, unit="step")
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        self._open.close()
        self._bar = None


def _no_training_metrics(record: logging.LogRecord) -> bool:
    """All but the line of metrics that fairchem's training loop prints every so many steps."""
    return not (record.module == "ocp_trainer" and record.funcName == "train")
