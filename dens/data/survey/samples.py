"""Data sets as fairchem reads them, record by record, in numpy: for ``stats`` and ``check``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dens.data.convert.labels import open_or_periodic

_NAMES = {"energy": ("energy", "y"), "forces": ("forces", "force")}


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
    """

    where: str
    numbers: np.ndarray
    pos: np.ndarray
    cell: np.ndarray | None
    energy: float | None
    forces: np.ndarray | None
    free: np.ndarray


def find_splits(path: str | Path) -> dict[str, Path]:
    """The LMDB folders at a path: itself, or those right below it, by name.

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


def read_samples(dataset: Any, indices: np.ndarray | None = None) -> Iterator[Sample | str]:
    """The structures of a data set in order; for a record that cannot be read, a message.

    Args:
        dataset: from `dens.fairchem1.data.datasets.open_dataset`.
        indices: which ones; by default all.
    """
    for i in range(len(dataset)) if indices is None else indices.tolist():
        try:
            yield _sample(i, dataset[i])
        except Exception as error:  # a damaged record raises anything
            yield f"record {i}: {type(error).__name__}: {error}"


def _sample(i: int, data: Any) -> Sample:
    labels = {
        ours: next((data[name] for name in names if name in data and data[name] is not None), None)
        for ours, names in _NAMES.items()
    }
    ids = [f"{name}={_plain(data[name])}" for name in ("sid", "fid") if name in data]
    fixed = np.asarray(data.fixed) if "fixed" in data else np.zeros(len(data.pos))
    pos, cell = open_or_periodic(data)
    energy, forces = labels["energy"], labels["forces"]
    return Sample(
        where=" ".join([f"record {i}", *ids]),
        numbers=np.asarray(data.atomic_numbers).astype(int),
        pos=pos,
        cell=cell,
        energy=None if energy is None else float(energy),
        forces=None if forces is None else np.asarray(forces, dtype=float),
        free=fixed == 0,
    )


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def draw(n: int, sample: int | None, seed: int = 0) -> np.ndarray:
    """Ascending numbers of `sample` of `n` records, drawn at random; of all for None."""
    if sample is None or sample >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:sample])


def dataset_settings(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The ``dataset.train`` of a training config, in whose way records are read.

    Raises:
        ValueError: the config has none.
    """
    if config is None:
        return None
    dataset = config.get("dataset")
    train = dataset.get("train") if isinstance(dataset, Mapping) else None
    if not isinstance(train, Mapping):
        raise ValueError("the config has no dataset.train")
    return train
