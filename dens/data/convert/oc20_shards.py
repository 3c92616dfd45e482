"""LMDB folders that were made of OC20 before, and their logs: records that get the mark ``md``.

``data_log.0000.txt`` belongs to ``data.0000.lmdb``, and so on: one line for each record, in the
order of the keys, that tells where it comes from. The number in a name like ``random1234`` there
must be the record's sid. A record is MD where its line has the word (see `dens.data.sources.oc20`).
Logs as fairchem writes them, ``random1234,frame56``, never have it; where no line of a folder does,
they do not tell, and one has to say it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lmdb
from torch_geometric.data import Data

from dens.data.convert.build import Prepared
from dens.data.convert.frames import CHUNK, naming_frame
from dens.data.sources.ase import Source, make_source
from dens.data.sources.oc20 import read_text, says_md
from dens.data.store.lmdb_files import count_records, open_lmdb
from dens.data.store.records import pickle_record
from dens.safe.pickles import load_record

_SYSTEM = re.compile(r"random(\d+)")


@dataclass(frozen=True)
class Shard:
    """Some records of an LMDB file, and the log beside it, if there is one; ``md`` None means
    that the log tells."""

    file: Source
    log: Source | None
    start: int
    stop: int
    md: bool | None


def mark(shard: Shard) -> Prepared:
    """The records of an LMDB file with ``md`` set."""
    prepared = Prepared()
    lines = shard.log and read_text(shard.log.path)
    with _open_lmdb(shard.file.path) as records:
        for key in range(shard.start, shard.stop):
            with naming_frame(shard.file.path, key):
                data = _load(records.get(str(key).encode()))
                if lines:
                    _check_system(lines[key], data)
                data.md = int(says_md(lines[key]) if shard.md is None else shard.md)
                prepared.payloads.append(pickle_record(data))
                prepared.metadata.append({"natoms": len(data.pos), "md": data.md})
    prepared.counts.update(
        frames=len(prepared.payloads), md=sum(entry["md"] for entry in prepared.metadata)
    )
    return prepared


def _load(payload: bytes | None) -> Data:
    fields = load_record(payload).to_dict()
    return Data(**{name: value for name, value in fields.items() if value is not None})


def _check_system(line: str, data: Data) -> None:
    named = _SYSTEM.search(line)
    if named and "sid" in data and int(named[1]) != int(data.sid):
        raise ValueError(f"its sid is {int(data.sid)}, but its line of the log is {line!r}")


@contextmanager
def _open_lmdb(path: str) -> Iterator[lmdb.Transaction]:
    with open_lmdb(path) as environment, environment.begin() as transaction:
        yield transaction


def find_shards(folder: Path, logs: Path | None, md: bool | None) -> list[tuple[Shard, int]]:
    """The LMDB files of a folder, in portions, with the number of records of each.

    Args:
        folder: with ``*.lmdb``.
        logs: the folder of the logs; by default `folder`.
        md: for all records; None: as the logs say.

    Raises:
        ValueError: a log that is missing or does not fit, or logs that never say md.
    """
    shards = []
    told = md is not None
    for path in sorted(folder.glob("*.lmdb")):
        log = (logs or folder) / f"{path.stem.replace('data', 'data_log')}.txt"
        lines = read_text(log) if log.exists() else None
        if lines is None and md is None:
            raise ValueError(
                f"{log} is missing, which tells the MD structures: or give --md yes|no"
            )
        with _open_lmdb(str(path)) as records:
            count = count_records(records, path)
        if lines is not None and len(lines) != count:
            raise ValueError(
                f"{log}: expected a line for each of {count} records, got {len(lines)}"
            )
        told = told or any(map(says_md, lines))
        file, text = make_source(path, path.stem), lines and make_source(log, log.stem)
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            shards.append((Shard(file, text, start, stop, md), stop - start))
    if not told:
        raise ValueError(
            f"{logs or folder}: no line of its data_log files says md, so they may not tell it: "
            "give --md yes|no"
        )
    return shards
