"""Print what a run says to its user, and keep all lines, the host's too, in a file of the run."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

VERBOSE = "DENS_VERBOSE"  # environment variable, which ranks and jobs inherit
_FORMAT = "%(asctime)s %(pathname)s:%(lineno)d: (%(levelname)s): %(message)s"  # fairchem's
_OBSOLETE = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
_shown = logging.getLogger("dens.terminal")


def show(text: str) -> None:
    """Print lines for the user, by the logger ``dens.terminal``."""
    _shown.info(text)


def is_verbose() -> bool:
    """Whether the host's lines shall be printed as they come, as with ``--verbose``."""
    return os.environ.get(VERBOSE, "0") not in ("", "0")


def on_terminal() -> bool:
    """Whether a person sees stderr, so that progress bars make sense."""
    return sys.stderr.isatty() and "SLURM_JOB_ID" not in os.environ


def rank_of_process() -> int:
    """Return this process's rank as its launcher says, before the ranks have met."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def active_output() -> RunOutput | None:
    """Return the handler of :func:`terminal_output`, if one is at work."""
    return next((h for h in logging.getLogger().handlers if isinstance(h, RunOutput)), None)


class RunOutput(logging.Handler):
    """Handler that prints lines for the user, warnings and errors, and writes all to a file.

    Lines before the file is known are kept and written first. Of ranks other than the first only
    warnings and errors are printed, after their number.

    Args:
        rank: of this process.

    Attributes:
        noise: regular expressions of the host's warnings that tell a user nothing.
    """

    def __init__(self, rank: int = 0) -> None:
        super().__init__(logging.INFO)
        self.rank = rank
        self.noise: list[str] = []
        self.path: Path | None = None
        self._file: logging.FileHandler | None = None
        self._before: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record to the file, and print it if it is for the user."""
        try:
            self._keep(record)
            if self._for_user(record):
                warns = record.levelno >= logging.WARNING
                stream = sys.stderr if warns else sys.stdout
                tqdm.write(self._text(record, stream), file=stream)  # above a bar, if there is one
                stream.flush()
        except Exception:
            self.handleError(record)

    def _keep(self, record: logging.LogRecord) -> None:
        if self._file is not None:
            self._file.handle(record)
        else:
            self._before.append(record)

    def _for_user(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return record.name == _shown.name and self.rank == 0
        if issubclass(getattr(record, "category", Warning), _OBSOLETE):
            return False
        text = record.getMessage()
        return record.levelno >= logging.ERROR or not any(re.search(n, text) for n in self.noise)

    def _text(self, record: logging.LogRecord, stream: Any) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        if record.levelno < logging.WARNING:
            return text
        kind, colour = (
            ("error", "red") if record.levelno >= logging.ERROR else ("warning", "yellow")
        )
        if stream.isatty():
            kind = click.style(kind, fg=colour)
        return f"rank {self.rank}: " * (self.rank > 0) + f"{kind}: {text}"

    def open(self, folder: str | Path) -> None:
        """Write the lines to ``host.log`` in a folder, of another rank to ``host-rank1.log``."""
        of_rank = f"-rank{self.rank}" if self.rank else ""
        self.path = Path(folder) / f"host{of_rank}.log"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = logging.FileHandler(self.path, encoding="utf-8")  # appends, as on resume
        self._file.setFormatter(logging.Formatter(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
        before, self._before = self._before, []
        for record in before:
            self._file.handle(record)

    def keep_exception(self, error: BaseException) -> None:
        """Write a traceback to the file; Python prints it when the program ends."""
        info = (type(error), error, error.__traceback__)
        path, line = __file__, 0
        self._keep(logging.LogRecord("root", logging.ERROR, path, line, "The run ended", (), info))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        super().close()


@contextmanager
def terminal_output(
    folder: str | Path | None = None, noise: Sequence[str] = ()
) -> Iterator[RunOutput | None]:
    """Print for the user within a ``with`` block, and log to a file in ``folder`` once it is known.

    A block within another one only adds the folder and the noise. With ``--verbose`` nothing is
    changed, and None is given.

    Args:
        folder: the run's log folder.
        noise: regular expressions of the host's warnings that are for the file only.
    """
    if is_verbose():
        yield None
        return
    output = active_output()
    with ExitStack() as undo:
        if output is None:
            output = RunOutput(rank_of_process())
            undo.enter_context(_installed(output))
        output.noise += noise
        opens = output.path is None
        if folder is None:
            opens = False
        elif opens:
            output.open(folder)
            undo.enter_context(_quiet_wandb())
        try:
            yield output
        except BaseException as error:
            if opens and not isinstance(error, SystemExit | KeyboardInterrupt):
                output.keep_exception(error)
            raise


@contextmanager
def _installed(output: RunOutput) -> Iterator[None]:
    """Take the place of the root logger's console handlers, and log Python's warnings."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [*(h for h in handlers if not _writes_to_console(h)), output]
    root.setLevel(os.environ.get("LOGLEVEL", "INFO").upper())
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        output.close()


def _writes_to_console(handler: logging.Handler) -> bool:
    consoles = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return isinstance(handler, logging.StreamHandler) and handler.stream in consoles


@contextmanager
def _quiet_wandb() -> Iterator[None]:
    """Let W&B print the address of the run alone, and nothing where the run has none."""
    offline = os.environ.get("WANDB_MODE") in ("offline", "disabled")
    name = "WANDB_SILENT" if offline else "WANDB_QUIET"
    if name in os.environ:
        yield
        return
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Log a warning of Python's, with its category for the handler."""
    logger = logging.getLogger("py.warnings")
    values = {"category": category}
    record = logger.makeRecord(
        logger.name, logging.WARNING, filename, lineno, str(message), (), None, extra=values
    )
    logger.handle(record)
