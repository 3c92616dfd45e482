"""LMDB files of others: opened only where they are whole, and counted without trusting them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import lmdb

from dens.safe.pickles import BadRecord, loads


def open_lmdb(path: str | Path, opener: Callable[[], lmdb.Environment] | None = None):
    """Open an LMDB file for reading.

    Args:
        opener: what opens it; by default ``lmdb.open`` without locks.

    Raises:
        ValueError: it is no LMDB file, or cut off: touching what is missing would end the process.
    """
    try:
        environment = (opener or _opener(path))()
    except lmdb.Error as error:
        raise ValueError(f"{path}: not an LMDB file: {error}") from None
    page = environment.stat()["psize"]
    needed, found = (environment.info()["last_pgno"] + 1) * page, os.path.getsize(path)
    # LMDB need not have written the very last pages, where they are free ones
    if needed - found > min(64 * page, needed // 100):
        environment.close()
        raise ValueError(f"{path} is cut off: it has {found} bytes of {needed}")
    return environment


def _opener(path: str | Path) -> Callable[[], lmdb.Environment]:
    return lambda: lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_readers=1)


def count_records(transaction: lmdb.Transaction, path: str | Path) -> int:
    """How many records a file has, by its entry ``length`` where there is one.

    Raises:
        ValueError: that entry is no number, or far from how many there are.
    """
    entries = transaction.stat()["entries"]
    length = transaction.get(b"length")
    if length is None:
        return entries
    try:
        count = loads(length)
    except BadRecord as error:
        raise ValueError(f"{path}: the entry length: {error}") from None
    # some records may be missing, which is for their reader to say
    if isinstance(count, bool) or not hasattr(count, "__index__") or not 0 <= count < 2 * entries:
        raise ValueError(
            f"{path}: the entry length must be the number of records, some {entries - 1}, got "
            f"{count!r:.40}"
        )
    return int(count)
