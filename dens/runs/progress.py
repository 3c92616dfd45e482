"""Show a progress bar for each epoch in a terminal; elsewhere fairchem's plain lines remain."""

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

from dens.metrics import METRICS


class Progress:
    """Progress bar that reads the position in an epoch from the logged metrics.

    Args:
        quiet: show neither a bar nor fairchem's lines of training metrics.
    """

    def __init__(self, *, quiet: bool) -> None:
        bar = sys.stderr.isatty() and "SLURM_JOB_ID" not in os.environ
        self._shows_bar = bar and not quiet
        self._bar: tqdm | None = None
        self._epoch = -1
        self._open = ExitStack()
        if quiet or bar:
            logging.getLogger().addFilter(_no_training_metrics)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Advance to a logged training step; ``metrics`` hold its ``step`` and ``epoch``."""
        if not self._shows_bar or not {"step", "epoch"} <= metrics.keys():
            return
        step, epoch = int(metrics["step"]), float(metrics["epoch"])
        steps = max(round(step / epoch), 1)  # of an epoch
        number = math.ceil(step / steps) - 1
        if number != self._epoch:
            self.close()
            self._epoch = number
            self._open.enter_context(logging_redirect_tqdm())  # log lines go above the bar
            bar = tqdm(total=steps, desc=f"epoch {number + 1}", dynamic_ncols=True, unit="step")
            self._bar = self._open.enter_context(bar)
        done = step - number * steps
        self._bar.update(done - self._bar.n)
        shown = [m for m in METRICS.values() if m.short and m.name in metrics]
        values = {m.short: f"{float(metrics[m.name]):.3g}" for m in shown}
        self._bar.set_postfix(values, refresh=False)
        if done == steps:
            self.close()

    def close(self) -> None:
        """End the bar and leave it on the screen."""
        self._open.close()
        self._bar = None


def _no_training_metrics(record: logging.LogRecord) -> bool:
    """Filter out the metrics that fairchem's training loop prints every ``print_every`` steps."""
    return not (record.module == "ocp_trainer" and record.funcName == "train")
