"""Arguments and summary that the demo data sets have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar


def check_least(least: int, **arguments: int) -> None:
    """Refuse arguments below a limit.

    Raises:
        ValueError: names the argument.
    """
    for name, value in arguments.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


class SplitContents(Protocol):
    """Contents of a split, collected while it is written."""

    head: str  # of the table

    def line(self, name: str) -> str:
        """Format the row of the split called `name`."""


Split = TypeVar("Split", bound=SplitContents)


@dataclass(frozen=True)
class DemoSummary(Generic[Split]):
    """Summary of a demo data set: its folder, its seed, and its splits by name."""

    path: Path
    seed: int
    splits: dict[str, Split]

    def table(self) -> str:
        """Return the counts and statistics of the splits, one line each."""
        first, *_ = self.splits.values()
        return "\n".join([first.head, *(split.line(name) for name, split in self.splits.items())])
