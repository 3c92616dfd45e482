"""Handle stop signals (SIGTERM, preemption), and tune the C library's allocator."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

from dens.settings import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Keep freed memory in this process, so that the next training step can use it.

    A step on a CPU frees large tensors and allocates as many again. glibc returns them to the
    operating system, whose fresh zeroed pages then cost up to two fifths of a step. Does nothing
    with another C library, or if the environment configures glibc's allocator.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name in os.environ for name in _CHOSEN):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def refuse_torchrun(ranks: str) -> None:
    """Refuse to run as one of torchrun's processes: fairchem would make each a run of one rank.

    Args:
        ranks: how fairchem is told the number of ranks, which it starts itself.

    Raises:
        ConfigError: torchrun has started this process.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        number = os.environ.get("WORLD_SIZE", "N")
        raise ConfigError(
            f"torchrun has started {number} processes, but fairchem starts its ranks itself: run "
            f"it without torchrun, with {ranks}"
        )


class StopSignals:
    """Context that defers SIGTERM, and submitit's signal of preemption, to the end of a step.

    Their handlers save a checkpoint and end or requeue the job. In the middle of a step there is
    no consistent state to save, so the signal is noted as ``pending`` until :meth:`deliver`. A
    handler of another kind, such as submitit's for SIGTERM, stays as it is.

    Args:
        replace: put this in the place of any handler of SIGTERM, which is not called either.
    """

    def __init__(self, *, replace: bool = False) -> None:
        self.replace = replace
        self.pending: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}  # handlers

    def __enter__(self) -> StopSignals:
        from submitit.core.job_environment import JobEnvironment

        preemption = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
        if self.replace or signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._hold(signal.SIGTERM)
        if callable(signal.getsignal(preemption)):
            self._hold(preemption)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hold(self, number: int) -> None:
        self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's worker, forked with this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.pending is None:
            self.pending = number
            logging.warning(f"{signal.Signals(number).name}: stopping after this step")

    def deliver(self) -> None:
        """Call the deferred signal's own handler, or exit with status 128 + its number.

        A rank that got no signal itself exits as after SIGTERM.
        """
        number = self.pending or signal.SIGTERM
        handler = self._before.get(number, signal.SIG_DFL)
        if callable(handler) and not (self.replace and number == signal.SIGTERM):
            self.pending = None
            handler(number, None)
        else:
            sys.exit(128 + number)
