"""The findings of a check, in the order in which they are made."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click

from dens.settings import ConfigError

_COLORS = {"ok": "green", "warn": "yellow", "error": "red"}


@dataclass(frozen=True)
class Finding:
    """One line: ``level`` is ok, warn or error; what was looked at; what was seen."""

    level: str
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.level:<6} {self.what}: {self.detail}"

    def styled(self) -> str:
        """The line for a terminal."""
        level = click.style(f"{self.level:<6}", fg=_COLORS[self.level], bold=self.level != "ok")
        return f"{level} {self.what}: {self.detail}"


@dataclass
class Report:
    """The findings so far; ``show`` is called with each as it is made."""

    show: Callable[[Finding], None] = lambda finding: None
    findings: list[Finding] = field(default_factory=list)

    def ok(self, what: str, detail: str) -> None:
        self._add("ok", what, detail)

    def warn(self, what: str, detail: str) -> None:
        self._add("warn", what, detail)

    def error(self, what: str, detail: str) -> None:
        self._add("error", what, detail)

    def _add(self, level: str, what: str, detail: str) -> None:
        finding = Finding(level, what, detail)
        if finding not in self.findings:  # two checks may meet the same mistake
            self.findings.append(finding)
            self.show(finding)

    def count(self, level: str) -> int:
        return sum(finding.level == level for finding in self.findings)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Turn whatever is raised inside into an error of ``what``, so that other checks go on."""
        try:
            yield
        except (Exception, SystemExit) as error:
            for line in explain(error):
                self.error(what, line)

    def summary(self) -> str:
        """The last line."""
        errors, warnings = self.count("error"), self.count("warn")
        if errors:
            return f"not ready: {counted(errors, 'error')}, {counted(warnings, 'warning')}"
        return f"ready to train, {counted(warnings, 'warning')}"


def explain(error: BaseException) -> list[str]:
    """An error in lines for the user; one that was not meant for users comes with its place."""
    if isinstance(error, ConfigError):
        return str(error).splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    message = " ".join(str(error).split()) or "no message"
    return [f"{type(error).__name__}: {message}{place}"]


def counted(n: int, noun: str) -> str:
    """A number and a noun in the plural that it needs."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
