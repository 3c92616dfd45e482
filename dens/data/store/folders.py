"""Read folders of LMDB files record by record."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import lmdb
from torch_geometric.data import Data

from dens.data.canonical import canonical
from dens.data.store.lmdb import count_records, open_lmdb
from dens.safe.pickles import BadRecord, load_record


class LmdbFolder:
    """The records of an LMDB file or folder, in the order of fairchem's ``lmdb``.

    Raises:
        ValueError: a file is truncated, empty or no LMDB file, or its entry ``length`` is wrong.
        BadRecord: on access to a record that cannot be read.
    """

    suffix = ".lmdb"

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.paths = [path]
        self._files = [path] if path.is_file() else sorted(path.glob(f"*{self.suffix}"))
        self._transactions = [open_lmdb(file).begin() for file in self._files]
        opened = zip(self._transactions, self._files, strict=True)
        self._keys = [self.keys(transaction, file) for transaction, file in opened]
        self._ends = list(accumulate(map(len, self._keys)))
        if not self._ends or self._ends[-1] == 0:
            raise ValueError(f"{path} holds no records")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Data:
        shard, key = self._find(i)
        try:
            return canonical(self.decode(self._transactions[shard].get(str(key).encode())))
        except BadRecord as error:
            raise BadRecord(f"{self.where(i)}: {error}") from None

    @staticmethod
    def keys(transaction: lmdb.Transaction, path: Path) -> Sequence[int]:
        """List the keys of a file's records, in their order."""
        return range(count_records(transaction, path))

    @staticmethod
    def decode(payload: bytes | None) -> Data:
        """Read a record; there is none under its key if `payload` is None.

        Raises:
            BadRecord: it cannot be read.
        """
        return load_record(payload)

    def where(self, i: int) -> str:
        """Name the file of a record, its key there and its index, for messages."""
        shard, key = self._find(i)
        return f"{self._files[shard]}, record {key} (index {i})"

    def _find(self, i: int) -> tuple[int, int]:
        shard = bisect.bisect(self._ends, i)
        return shard, self._keys[shard][i - (self._ends[shard - 1] if shard else 0)]
