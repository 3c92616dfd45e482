"""State of this process: signals that ask it to stop, and the C library's allocator."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from types import FrameType, TracebackType

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let this process keep the memory of one step for the next.

    A step on a CPU frees large tensors and asks for as many again. glibc gives them back to the
    operating system, whose fresh zeroed pages then cost up to two fifths of a step. Does
    nothing where glibc is not the C library, or where the environment sets its allocator.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name in os.environ for name in _CHOSEN):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class StopSignals:
    """Holds back SIGTERM, and the signal with which submitit announces preemption.

    Their handlers save a checkpoint and end or requeue the job. In the middle of a step there is
    nothing sound to save, so that the signal is noted, for :meth:`deliver` to hand over afterwards.
    A handler of another kind, such as submitit's for SIGTERM, stays as it is.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._process = os.getpid()
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        from submitit.core.job_environment import JobEnvironment

        preemption = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._hold(signal.SIGTERM)
        if callable(signal.getsignal(preemption)):
            self._hold(preemption)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
        """Act on the signal: call the handler it had, or exit with status 128 + its number.

        Where another rank has it, this one exits as after SIGTERM.
        """
        number = self.pending or signal.SIGTERM
        handler = self._before.get(number, signal.SIG_DFL)
        if callable(handler):
            self.pending = None
            handler(number, None)
        else:
            sys.exit(128 + number)
