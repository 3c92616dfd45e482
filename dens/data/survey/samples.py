"""Read data sets record by record, in numpy, for ``dens data stats`` and ``dens data check``."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch_geometric.data import Data

from dens.data.soundness import LABELS, Fault, find_faults, open_or_periodic
from dens.data.store.lmdb import count_records, open_lmdb
from dens.safe.pickles import BadRecord, load_record


@dataclass(frozen=True)
class Sample:
    """One structure; what it lacks is None.

    Attributes:
        where: its number in the data set and its identifiers, for messages.
        numbers: (n_atoms,) atomic numbers.
        pos: (n_atoms, 3), Å.
        cell: (3, 3), Å; None for an open structure.
        energy: eV.
        forces: (n_atoms, 3), eV/Å.
        free: (n_atoms,) bool.
        faults: its faults, none of which concerns the shapes above.
    """

    where: str
    numbers: np.ndarray
    pos: np.ndarray
    cell: np.ndarray | None
    energy: float | None
    forces: np.ndarray | None
    free: np.ndarray
    faults: list[Fault]


class LmdbFolder:
    """The records of an LMDB file or folder, in the order of fairchem's ``lmdb``.

    Raises:
        ValueError: a file is truncated or no LMDB file, or its entry ``length`` is wrong.
        BadRecord: on access to a record that cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.paths = [path]
        self._files = [path] if path.is_file() else sorted(path.glob("*.lmdb"))
        self._transactions = [open_lmdb(file).begin() for file in self._files]
        self._ends = list(accumulate(map(count_records, self._transactions, self._files)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Data:
        shard, key = self._find(i)
        try:
            return load_record(self._transactions[shard].get(str(key).encode()))
        except BadRecord as error:
            raise BadRecord(f"{self.where(i)}: {error}") from None

    def where(self, i: int) -> str:
        """Name the file of a record, its key there and its index, for messages."""
        shard, key = self._find(i)
        return f"{self._files[shard]}, record {key} (index {i})"

    def _find(self, i: int) -> tuple[int, int]:
        shard = bisect.bisect(self._ends, i)
        return shard, i - (self._ends[shard - 1] if shard else 0)


class FolderReader:
    """Reader of LMDB folders without a training config; adapters subclass it for their configs."""

    config: Mapping[str, Any] | None = None
    open: Callable[[Path], Any] = LmdbFolder

    def metadata(self, dataset: Any) -> dict[str, np.ndarray] | None:
        """Read the ``metadata.npz`` of a data set that has ``paths``; None without such a file."""
        path = dataset.paths[0]
        file = (path.parent if path.is_file() else path) / "metadata.npz"
        if not file.exists():
            return None
        with np.load(file) as arrays:
            return dict(arrays)


def find_splits(path: str | Path) -> dict[str, Path]:
    """List the LMDB folders at a path by name: itself, or the ones directly below it.

    Raises:
        ValueError: there are none.
    """
    path = Path(path)
    if path.is_file() or any(path.glob("*.lmdb")):
        return {path.name: path}
    below = sorted({file.parent for file in path.glob("*/*.lmdb")})
    if not below:
        what = "has no *.lmdb, and none right below it" if path.exists() else "does not exist"
        raise ValueError(f"{path} {what}: expected a folder as dens data convert writes it")
    return {folder.name: folder for folder in below}


def read_samples(dataset: Any) -> Iterator[Sample | str]:
    """Yield the structures of a data set in order; a message for a record that cannot be read.

    Args:
        dataset: with a length, of PyG ``Data``.
    """
    for i in range(len(dataset)):
        try:
            yield _sample(i, dataset[i])
        except Exception as error:  # a damaged record raises anything
            yield f"record {i}: {type(error).__name__}: {error}"


def _sample(i: int, data: Data) -> Sample | str:
    ids = {name: data[name] for name in ("sid", "fid") if name in data}
    plain = (f"{name}={v.item() if hasattr(v, 'item') else v}" for name, v in ids.items())
    where = " ".join([f"record {i}", *plain])
    energy, forces = (
        next((name for name in names if data.get(name) is not None), names[0])
        for names in LABELS.values()
    )
    faults = list(find_faults(data, {energy: "system", forces: "atom"}))
    malformed = [str(fault) for fault in faults if fault.kind == "unreadable"]
    if malformed:
        return f"{where}: {'; '.join(malformed)}"
    kinds = {fault.kind for fault in faults}
    pos, cell = open_or_periodic(data)
    return Sample(
        where=where,
        numbers=data.atomic_numbers.numpy().astype(int),
        pos=pos,
        cell=cell,
        energy=None if "no energy" in kinds else float(data[energy]),
        forces=None if "no forces" in kinds else data[forces].double().numpy(),
        free=data.fixed.numpy() == 0 if "fixed" in data else np.ones(len(pos), dtype=bool),
        faults=faults,
    )


def draw(n: int, sample: int | None, seed: int = 0) -> np.ndarray:
    """Draw `sample` of the numbers below `n` at random, ascending; None draws all."""
    if sample is None or sample >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:sample])
