"""Read ``run-ID.wandb``, in which W&B logs a run on this machine.

The file is a LevelDB log: a header of 7 bytes, then blocks of 32 KiB whose records are a checksum
(4 bytes), a length (2), a kind (1; whole, first, middle or last part) and data, protocol buffers
that W&B publishes. The W&B package has no reader for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, 7
_WHOLE, _FIRST, _MIDDLE, _LAST = range(1, 5)


def read_records(path: Path) -> Iterator[Any]:
    """Read the records in order, up to where a killed process stopped writing.

    Raises:
        ValueError: the file is not a W&B log.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    if data and data[:4] != b":W&B":
        raise ValueError(f"{path} is not a .wandb file: it must begin with b':W&B'")
    at, parts = _HEADER, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:  # too little for a record: the rest of the block is padding
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        at += _HEADER
        if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or at + size > len(data):
            return
        parts = data[at : at + size] if kind in (_WHOLE, _FIRST) else parts + data[at : at + size]
        at += size
        if kind in (_WHOLE, _LAST):
            yield Record.FromString(parts)


def last_step(path: Path) -> int:
    """Find the last step of which a file holds metrics; -1 without any."""
    steps = (r.history.step.num for r in read_records(path) if r.HasField("history"))
    return max(steps, default=-1)


def run_files(logs_dir: Path, run_id: str) -> list[Path]:
    """List the files of a run below its log folder, oldest first: one for each start."""
    return sorted(logs_dir.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb"))
