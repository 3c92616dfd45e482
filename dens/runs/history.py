"""The metrics of a run as a file: ``metrics.jsonl``, one JSON object for each step and split.

A line is ``{"step": 40, "split": "train", "epoch": 0.5, "loss": 1.2, ...}``. Numbers that are not
finite stand as ``NaN``, ``Infinity`` and ``-Infinity``, which Python's ``json`` writes and reads.
"""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class History:
    """Appends to ``metrics.jsonl``; every call leaves whole lines on disk.

    What is added for a split of the last step extends its line. What a killed process left of a
    line is dropped.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._open(whole_lines(self.path))

    def _open(self, lines: Iterable[bytes]) -> None:
        """Continue the file after ``lines``, which are all that it holds from now on."""
        content = b"".join(lines)
        if not self.path.is_file() or self.path.stat().st_size != len(content):
            temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
            temporary.write_bytes(content)
            os.replace(temporary, self.path)
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115 - open while the run is
        self._step: int | None = None
        self._of_step: dict[str, dict[str, Any]] = {}  # its lines, by split
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
        self._open(line for line in whole_lines(self.path) if json.loads(line)["step"] < step)

    def close(self) -> None:
        """Nothing more will be added."""
        self._file.close()


def plain_numbers(values: Mapping[str, Any]) -> dict[str, int | float]:
    """The entries that are numbers, as Python's own."""
    found = {name: v.item() if hasattr(v, "item") else v for name, v in values.items() if _one(v)}
    return {
        name: int(v) if isinstance(v, numbers.Integral) else float(v)
        for name, v in found.items()
        if isinstance(v, numbers.Real)
    }


def _one(value: Any) -> bool:
    return getattr(value, "size", 1) == 1 if not hasattr(value, "numel") else value.numel() == 1


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, without a last one that was not ended; none where there is no file."""
    if not path.is_file():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, also of a run that is still writing it.

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
            raise ValueError(
                f"{path}, line {number} must be a JSON object with step and split, got "
                f"{text[:80].decode(errors='replace').strip()!r}"
            )
        lines.append(line)
    return lines
