"""The metrics of a run as a file: ``metrics.jsonl``, one JSON object for each step and split.

A line is ``{"step": 40, "split": "train", "epoch": 0.5, "loss": 1.2, ...}``. Numbers that are not
finite are written as ``NaN``, ``Infinity`` and ``-Infinity``, which Python's ``json`` reads.
"""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dens.files import atomic_file


class History:
    """Writer of ``metrics.jsonl``; the file holds whole lines after every call.

    Values added for the last step and a split extend its line. An incomplete last line, left by a
    killed process, is dropped.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._open(whole_lines(self.path))

    def _open(self, lines: list[bytes]) -> None:
        """Continue the file after ``lines``, all that it shall hold."""
        content = b"".join(lines)
        if not self.path.is_file() or self.path.stat().st_size != len(content):
            with atomic_file(self.path) as file:
                file.write(content)
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115 - open during the run
        self._step: int | None = None
        self._of_step: dict[str, dict[str, Any]] = {}  # lines of the last step, by split
        self._start = self._end = self._file.seek(0, os.SEEK_END)

    def add(self, values: Mapping[str, Any], step: int, split: str) -> None:
        """Write the numbers among ``values``: Python's, NumPy's or tensors of one element."""
        step = int(step)
        if step != self._step:
            self._step, self._of_step, self._start = step, {}, self._end
        key = {"step": step, "split": split}
        self._of_step[split] = {**self._of_step.get(split, key), **plain_numbers(values), **key}
        text = b"".join(json.dumps(line).encode() + b"\n" for line in self._of_step.values())
        # over the shorter lines of the same step, so that a kill here costs those at most
        self._file.seek(self._start)
        self._file.write(text)
        self._end = self._start + len(text)
        self._file.truncate(self._end)

    def drop_from(self, step: int) -> None:
        """Drop the lines of ``step`` and of all later steps; the file is replaced as a whole."""
        self._file.close()
        self._open([line for line in whole_lines(self.path) if json.loads(line)["step"] < step])


def plain_numbers(values: Mapping[str, Any]) -> dict[str, int | float]:
    """Select the entries that are numbers and convert them to Python's own."""
    found = {}
    for name, value in values.items():
        size = value.numel() if hasattr(value, "numel") else getattr(value, "size", 1)
        value = value.item() if size == 1 and hasattr(value, "item") else value
        if isinstance(value, numbers.Real):
            found[name] = int(value) if isinstance(value, numbers.Integral) else float(value)
    return found


def whole_lines(path: Path) -> list[bytes]:
    """Read the lines of a file except an incomplete last one; none if there is no file."""
    if not path.is_file():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Read a ``metrics.jsonl``, also while its run is writing it.

    Raises:
        ValueError: there is no such file; a line in it is not a JSON object with step and split.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: a run's log folder holds it from the first step")
    lines = []
    for number, text in enumerate(whole_lines(path), 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not line.keys() >= {"step", "split"}:
            got = text[:80].decode(errors="replace").strip()
            raise ValueError(
                f"{path}, line {number} must be a JSON object with step and split, got {got!r}"
            )
        lines.append(line)
    return lines
