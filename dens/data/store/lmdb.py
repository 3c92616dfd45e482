"""Write and open LMDB folders in OC20's form.

Writing is atomic, and equal records give equal bytes. Files from elsewhere are opened safely: a
truncated file is refused, and the record count that it states is checked.
"""

from __future__ import annotations

import os
import pickle
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import lmdb
import numpy as np
from torch_geometric.data import Data

from dens.data.store.records import PICKLE_PROTOCOL, pickle_record
from dens.files import atomic_folder
from dens.safe.pickles import BadRecord, loads

# The bytes written depend on all three.
SHARD_SIZE = 100_000  # records per LMDB file
BATCH_SIZE = 256  # records per transaction
MAP_SIZE = 1 << 24  # bytes: initial limit of an LMDB file; doubled when it is full

MAX_SHARDS = 10_000  # data.9999.lmdb is the last name that sorts by number


class LmdbWriter:
    """Writer of one split: a folder of LMDB shards and ``metadata.npz``, as fairchem reads it.

    The shards are ``data.0000.lmdb``, ``data.0001.lmdb``, ...: each an LMDB file with records under
    the keys ``0`` .. ``n-1`` and their number under ``length``. ``metadata.npz`` has one int64
    array for ``natoms`` and for every other metadata name, with one entry per record.

    The folder gets its name when the ``with`` block ends without an exception (see
    `dens.files.atomic_folder`). Its bytes depend only on the sequence of records.

    >>> with LmdbWriter("data/train") as writer:  # doctest: +SKIP
    ...     writer.write(data, md=1)

    Args:
        path: the folder to write.
        shard_size: records per LMDB file.

    Raises:
        ValueError: on entering, see `atomic_folder`; on leaving, if no record was written.
    """

    name = "lmdb"  # of the format, and the suffix of its files
    first_key = 0
    encode: Callable[[Data], bytes] = staticmethod(pickle_record)

    @staticmethod
    def closing(count: int) -> dict[bytes, bytes]:
        """Make the entries that a file of `count` records has beside them."""
        return {b"length": pickle.dumps(count, protocol=PICKLE_PROTOCOL)}

    def __init__(self, path: str | Path, *, shard_size: int = SHARD_SIZE) -> None:
        self.path = Path(path)
        self._shard_size = shard_size
        self._metadata: dict[str, array] = {}
        self._n_shards = 0
        self._env: lmdb.Environment | None = None
        self._env_count = 0  # records committed to the open shard
        self._batch: list[bytes] = []

    def __enter__(self) -> LmdbWriter:
        with ExitStack() as stack:
            self._folder = stack.enter_context(atomic_folder(self.path))
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc) -> bool | None:
        return self._stack.__exit__(*exc)

    def write(self, data: Data, **metadata: int) -> None:
        """Append a record; ``natoms`` is added to its metadata.

        Args:
            data: the record, whose fields are tensors, numbers or strings.
            metadata: further entries for ``metadata.npz``, with equal names for all records.

        Raises:
            ValueError: a field of another type, or different metadata names than before.
        """
        self.write_bytes(self.encode(data), natoms=data.natoms, **metadata)

    def write_bytes(self, payload: bytes, *, natoms: int, **metadata: int) -> None:
        """Append a record that `encode` has encoded.

        Raises:
            ValueError: different metadata names than before.
        """
        entry = {"natoms": natoms, **metadata}
        columns = self._metadata or {name: array("q") for name in entry}
        if columns.keys() != entry.keys():
            raise ValueError(
                f"{self.path}: every record needs the same metadata, "
                f"expected {sorted(columns)}, got {sorted(entry)}"
            )
        for name, value in entry.items():
            columns[name].append(int(value))
        self._metadata = columns
        self._batch.append(payload)
        if self._env_count + len(self._batch) == self._shard_size:
            self._close_shard()
        elif len(self._batch) == BATCH_SIZE:
            self._commit()

    def _commit(self) -> None:
        records = enumerate(self._batch, start=self._env_count + self.first_key)
        self._put({str(key).encode(): payload for key, payload in records})
        self._env_count += len(self._batch)
        self._batch = []

    def _put(self, items: dict[bytes, bytes]) -> None:
        """Write items to the open shard in one transaction; open a shard if there is none."""
        if self._env is None:
            self._env = self._open_shard()
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for key, value in items.items():
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])

    def _open_shard(self) -> lmdb.Environment:
        if self._n_shards == MAX_SHARDS:
            raise ValueError(
                f"{self.path}: expected at most {MAX_SHARDS} shards of {self._shard_size} records, "
                "got more: use a larger shard_size"
            )
        path = self._folder / _shard_name(self._n_shards, f".{self.name}")
        self._n_shards += 1
        # No LMDB lock or sync: no other process sees the file before it is synced and renamed.
        # meminit: without it, the unused ends of pages hold whatever was in memory.
        options = {"map_size": MAP_SIZE, "mode": 0o644, "lock": False, "sync": False}
        return lmdb.open(str(path), subdir=False, meminit=True, **options)

    def _close_shard(self) -> None:
        self._commit()
        self._put(self.closing(self._env_count))
        self._env.close()
        self._env, self._env_count = None, 0

    def _finish(self, exc_type, exc, traceback) -> None:
        if exc_type is not None:
            if self._env is not None:
                self._env.close()
            return
        if not self._metadata:
            raise ValueError(f"{self.path}: expected at least one record, got none")
        if self._batch or self._env is not None:
            self._close_shard()
        arrays = {name: np.array(column, dtype=np.int64) for name, column in self._metadata.items()}
        np.savez(self._folder / "metadata.npz", **arrays)


def _shard_name(number: int, suffix: str) -> str:
    return f"data.{number:04d}{suffix}"


def join_folders(parts: Sequence[Path], out: Path) -> None:
    """Move the shards of several folders of one writer into one, and join their metadata."""
    out.mkdir(exist_ok=True)
    columns: dict[str, list[np.ndarray]] = {}
    for part in parts:
        with np.load(part / "metadata.npz") as metadata:
            for name, column in metadata.items():
                columns.setdefault(name, []).append(column)
    np.savez(out / "metadata.npz", **{n: np.concatenate(c) for n, c in columns.items()})
    shards = (shard for part in parts for shard in sorted(part.glob("data.*")))
    for number, shard in enumerate(shards):
        shard.rename(out / _shard_name(number, shard.suffix))


def open_lmdb(
    path: str | Path, opener: Callable[[], lmdb.Environment] | None = None
) -> lmdb.Environment:
    """Open an LMDB file for reading, unless it is truncated.

    Args:
        opener: function that opens it; by default ``lmdb.open`` without locks.

    Raises:
        ValueError: not an LMDB file, or truncated: reading past its end would kill the process.
    """
    options = {"subdir": False, "readonly": True, "lock": False, "max_readers": 1}
    try:
        environment = opener() if opener else lmdb.open(str(path), **options)
    except lmdb.Error as error:
        raise ValueError(f"{path}: not an LMDB file: {error}") from None
    page = environment.stat()["psize"]
    needed, found = (environment.info()["last_pgno"] + 1) * page, os.path.getsize(path)
    # LMDB may leave out the very last pages if they are free
    if needed - found > min(64 * page, needed // 100):
        environment.close()
        raise ValueError(f"{path} is cut off: it has {found} bytes of {needed}")
    return environment


def describe_missing(path: str | Path) -> str | None:
    """Say what a folder without ``*.lmdb`` holds instead; None if that is nothing known."""
    path = Path(path)
    files = [path / "data.mdb", *sorted(path.glob("*/data.mdb"))]
    if found := [str(file) for file in files if file.is_file()]:
        return (
            "holds an LMDB that is a folder (data.mdb, subdir=True), and files are read: name the "
            f"file itself, {' or '.join(found)}"
        )
    if path.is_dir() and not any(path.iterdir()):
        return "is an empty folder"
    return None


def count_records(transaction: lmdb.Transaction, path: str | Path) -> int:
    """Count the records of an LMDB file: its entry ``length``, or all entries without one.

    Raises:
        ValueError: ``length`` is not a number, or far from the number of entries.
    """
    entries = transaction.stat()["entries"]
    length = transaction.get(b"length")
    if length is None:
        return entries
    try:
        count = loads(length)
    except BadRecord as error:
        raise ValueError(f"{path}: the entry length: {error}") from None
    # some records may be missing: reading those is an error of its own
    if isinstance(count, bool) or not hasattr(count, "__index__") or not 0 <= count < 2 * entries:
        raise ValueError(
            f"{path}: the entry length must be the number of records, some {entries - 1}, got "
            f"{count!r:.40}"
        )
    return int(count)
