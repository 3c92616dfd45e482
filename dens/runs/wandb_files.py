"""What W&B has written of a run on this machine: its ``run-ID.wandb`` files.

They are logs in LevelDB's format, of protocol buffers that W&B publishes: blocks of 32 KiB, whose
records are a checksum (4 bytes), a length (2), a kind (1; whole, first, middle or last part) and
data, after a header of 7 bytes at the start of the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, 7
_WHOLE, _FIRST, _MIDDLE, _LAST = range(1, 5)


def read_records(path: str | Path) -> Iterator[Any]:
    """The records of a file, in order, up to where a killed process stopped writing.

    Raises:
        ValueError: the file is not one of W&B's.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data = Path(path).read_bytes()
    if data[:4] != b":W&B":
        raise ValueError(f"{path} is not a .wandb file: it must begin with b':W&B'")
    at, parts = _HEADER, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:  # too little for a header: the rest of the block is empty
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


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The logged rows of a file: names to values, with W&B's own ``_step`` among them."""
    rows = []
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
            rows.append({**row, "_step": record.history.step.num})
    return rows


def run_files(logs_dir: str | Path, run_id: str) -> list[Path]:
    """The files of a run below its log folder, oldest first: one for each start."""
    return sorted(Path(logs_dir).glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb"))
