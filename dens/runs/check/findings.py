"""Findings of ``dens check``: one line each, in the order in which they are made."""

from __future__ import annotations

import logging
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from typing import Any

import click

from dens.settings import ConfigError

_COLORS = {"ok": "green", "warn": "yellow", "error": "red"}


@dataclass(frozen=True)
class Finding:
    """One line: ``level`` (ok, warn or error), the topic of the check, and the result."""

    level: str
    what: str
    detail: str

    def styled(self) -> str:
        """Format the line for a terminal."""
        level = click.style(f"{self.level:<6}", fg=_COLORS[self.level], bold=self.level != "ok")
        return f"{level} {self.what}: {self.detail}"


@dataclass
class Findings:
    """List of the findings so far; ``show`` is called with each new one.

    ``ok``, ``warn`` and ``error`` take the topic of the check and the result.
    """

    show: Callable[[Finding], None] = lambda finding: None
    lines: list[Finding] = field(default_factory=list)

    def _add(self, level: str, what: str, detail: str) -> None:
        finding = Finding(level, what, detail)
        if finding not in self.lines:  # two checks may meet the same mistake
            self.lines.append(finding)
            self.show(finding)

    ok = partialmethod(_add, "ok")
    warn = partialmethod(_add, "warn")
    error = partialmethod(_add, "error")

    def count(self, level: str) -> int:
        """Count the findings of a level."""
        return sum(finding.level == level for finding in self.lines)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Turn any exception in the block into an error finding, so that other checks go on."""
        try:
            yield
        except (Exception, SystemExit) as error:
            for line in explain(error):
                self.error(what, line)

    def run(self, what: str, check: Callable[..., None], *args: Any) -> None:
        """Run one check, which takes the findings as its last argument, in :meth:`attempt`."""
        with self.attempt(what):
            check(*args, self)

    def summary(self) -> str:
        """Format the last line: whether the run can start, and the numbers of findings."""
        errors, warnings = self.count("error"), counted(self.count("warn"), "warning")
        return (
            f"not ready: {counted(errors, 'error')}, {warnings}"
            if errors
            else (f"ready to train, {warnings}")
        )


def explain(error: BaseException) -> list[str]:
    """Format an exception in lines for the user; an unexpected one with file and line number."""
    if isinstance(error, ConfigError):
        return str(error).splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    message = " ".join(str(error).split()) or "no message"
    return [f"{type(error).__name__}: {message}{place}"]


@contextmanager
def printed_findings() -> Iterator[Findings]:
    """Print the findings of a ``with`` block as they come, and a summary.

    The host's log and Python's warnings are kept out of the list.
    """
    started = time.perf_counter()
    findings = Findings(show=lambda finding: click.echo(finding.styled()))
    root, level = logging.getLogger(), logging.getLogger().level
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield findings
    finally:
        logging.disable(logging.NOTSET)
        root.setLevel(level)
    click.echo(f"{findings.summary()} ({time.perf_counter() - started:.1f} s)")


def counted(n: int, noun: str) -> str:
    """Format a number with its noun, in the plural if needed."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
