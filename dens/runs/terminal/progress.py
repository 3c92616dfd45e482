"""Show how far training has come: a bar for each epoch in a terminal, elsewhere plain lines."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, NamedTuple

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dens.metrics import METRICS
from dens.runs.terminal.output import active_output, on_terminal, rank_of_process, show

_SECONDS = 10.0  # between plain lines at first; later a hundredth of the time since the start
_OF_EVALUATION = 60.0  # seconds between plain lines of an evaluation


class Plan(NamedTuple):
    """The length of a training run, in steps."""

    steps: int  # of the whole run
    steps_per_epoch: int


class Progress:
    """Progress of training, read from the logged metrics.

    Without the output of :mod:`dens.runs.terminal.output`, such as in a notebook or with
    ``--verbose``, the host's own lines take the place of the plain ones.

    Args:
        quiet: show neither a bar nor lines of training metrics.
        clock: returns seconds.

    Attributes:
        plan: the length of the run; None: only that of an epoch is known, from the metrics.
    """

    def __init__(self, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        bar = on_terminal()
        self._shows_bar, self._prints = bar and not quiet, not (bar or quiet)
        self._clock = clock
        self._bar: tqdm | None = None
        self._epoch = -1
        self._open = ExitStack()
        self._values: dict[str, float] = {}  # the latest, by short title
        self._first: tuple[float, int] | None = None  # time and step of the first call
        self._last = -math.inf  # when the last line was printed
        self.plan: Plan | None = None
        if quiet or bar:
            logging.getLogger().addFilter(_no_training_metrics)

    def step(self, metrics: Mapping[str, Any], first: int = 1) -> None:
        """Advance to a logged training step, if ``metrics`` hold its ``step`` and ``epoch``.

        Args:
            first: the number of the first step of a run.
        """
        shown = [m for m in METRICS.values() if m.short and m.name in metrics]
        self._values |= {m.short: float(metrics[m.name]) for m in shown}
        if not {"step", "epoch"} <= metrics.keys():
            return
        done = int(metrics["step"]) - first + 1
        if self._shows_bar:
            of_epoch = max(round(int(metrics["step"]) / (float(metrics["epoch"]) or 1)), 1)
            self._move_bar(done, self.plan or Plan(0, of_epoch))
        elif self._prints and self.plan is not None and active_output() is not None:
            self._print(done, self.plan)

    def _move_bar(self, done: int, plan: Plan) -> None:
        number = math.ceil(done / plan.steps_per_epoch) - 1
        before = number * plan.steps_per_epoch
        total = min(plan.steps_per_epoch, plan.steps - before if plan.steps else math.inf)
        if number != self._epoch:
            self.close()
            self._epoch = number
            if active_output() is None:
                self._open.enter_context(logging_redirect_tqdm())  # log lines go above the bar
            bar = tqdm(total=total, desc=f"epoch {number + 1}", dynamic_ncols=True, unit="step")
            self._bar = self._open.enter_context(bar)
        if self._bar is None:  # of an epoch that is complete
            return
        self._bar.update(done - before - self._bar.n)
        self._bar.set_postfix({k: f"{v:.3g}" for k, v in self._values.items()}, refresh=False)
        if done - before == total:
            self.close()

    def _print(self, done: int, plan: Plan) -> None:
        now = self._clock()
        if self._first is None:
            self._first = now, done
        start, first = self._first
        if now - self._last < max(_SECONDS, (now - start) / 100) or done == first:
            return
        self._last = now
        rate = (done - first) / max(now - start, 1e-9)
        left = timedelta(seconds=round(max(plan.steps - done, 0) / rate))
        units = {m.short: f" {m.unit}" if m.unit else "" for m in METRICS.values()}
        values = ", ".join(f"{k} {v:.3g}{units[k]}" for k, v in self._values.items())
        epochs = math.ceil(plan.steps / plan.steps_per_epoch)
        epoch = math.ceil(done / plan.steps_per_epoch)
        speed = f"{rate:.2f} steps/s" if rate >= 1 else f"{1 / rate:.2f} s/step"
        show(
            f"step {done:,} of {plan.steps:,} (epoch {epoch} of {epochs}): {values}; {speed}, "
            f"{left} left"
        )

    def close(self) -> None:
        """End the bar and leave it on the screen."""
        self._open.close()
        self._bar = None


def follow(
    batches: Iterable[Any],
    *,
    total: int | None = None,
    desc: str | None = None,
    position: int | None = None,
    disable: bool = False,
) -> Iterator[Any]:
    """Show how far a loop over batches has come, in the place of tqdm, by the first rank alone.

    In a terminal by a bar that goes when it is complete; elsewhere by a line every minute.
    """
    what = desc if desc and not desc.startswith("device") else "evaluation"  # fairchem's
    disable = disable or rank_of_process() > 0
    if disable or on_terminal():
        yield from tqdm(batches, total=total, desc=what, leave=False, disable=disable)
        return
    last = time.monotonic()
    for number, batch in enumerate(batches):
        if time.monotonic() - last >= _OF_EVALUATION:
            last = time.monotonic()
            show(f"{what}: {number:,} of {total:,}" if total else f"{what}: {number:,}")
        yield batch


def _no_training_metrics(record: logging.LogRecord) -> bool:
    """Filter out the metrics that fairchem's training loop prints every ``print_every`` steps."""
    return not (record.module == "ocp_trainer" and record.funcName == "train")
