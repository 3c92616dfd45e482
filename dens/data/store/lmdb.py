"""Write LMDB folders in OC20's form: all or nothing, and the same bytes for the same records."""

from __future__ import annotations

import pickle
from array import array
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import numpy as np

from dens.data.store.records import PICKLE_PROTOCOL, pickle_record
from dens.files import atomic_folder

if TYPE_CHECKING:
    from torch_geometric.data import Data

# All three are part of what decides the bytes.
SHARD_SIZE = 100_000  # records per LMDB file
BATCH_SIZE = 256  # records per transaction
MAP_SIZE = 1 << 24  # bytes an LMDB file may grow to at first; doubled when it is full

MAX_SHARDS = 10_000  # data.9999.lmdb is the last name that sorts in the order of the numbers


class LmdbWriter:
    """Writes one split: a folder of LMDB shards and ``metadata.npz``, as fairchem reads it.

    The folder has ``data.0000.lmdb``, ``data.0001.lmdb``, ...: each one LMDB file with the records
    under the keys ``0`` .. ``n-1`` and their number under ``length``. ``metadata.npz`` has, for
    ``natoms`` and for whatever else is given, one int64 entry per record, in that order.

    It appears under its own name when the ``with`` block ends without an exception, and not before
    (see `atomic_folder`). The bytes depend on nothing but the sequence of records.

    >>> with LmdbWriter("data/train") as writer:
    ...     writer.write(data, md=1)

    Args:
        path: the folder to write.
        shard_size: records per LMDB file.

    Raises:
        ValueError: on entering, see `atomic_folder`; on leaving, if no record was written.
    """

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
        """Append a record; ``natoms`` is taken from it.

        Args:
            data: the record, with fields that are tensors, numbers or strings.
            metadata: further entries for ``metadata.npz``, the same names for every record.

        Raises:
            ValueError: a field of another type, or other metadata names than before.
        """
        self.write_bytes(pickle_record(data), natoms=data.natoms, **metadata)

    def write_bytes(self, payload: bytes, *, natoms: int, **metadata: int) -> None:
        """Append a record that is already pickled (by `dens.data.store.records.pickle_record`).

        Raises:
            ValueError: other metadata names than before.
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
        records = enumerate(self._batch, start=self._env_count)
        self._put({str(key).encode(): payload for key, payload in records})
        self._env_count += len(self._batch)
        self._batch = []

    def _put(self, items: dict[bytes, bytes]) -> None:
        """Put the items into the open shard in one transaction, opening one where none is."""
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
        name = f"data.{self._n_shards:04d}.lmdb"
        self._n_shards += 1
        # No LMDB lock or sync: nobody else sees the file before it is synced and renamed.
        # meminit: without it, the unused ends of pages hold whatever was in memory.
        return lmdb.open(
            str(self._folder / name),
            subdir=False,
            map_size=MAP_SIZE,
            mode=0o644,
            lock=False,
            sync=False,
            meminit=True,
        )

    def _close_shard(self) -> None:
        self._commit()
        self._put({b"length": pickle.dumps(self._env_count, protocol=PICKLE_PROTOCOL)})
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
