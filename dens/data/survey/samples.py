"""Read data sets record by record, in numpy, for ``dens data stats`` and ``dens data check``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch_geometric.data import Data

from dens.data.bulk.stress_labels import read_stress
from dens.data.canonical import canonical, kind_of
from dens.data.soundness import LABELS, USUAL, Fault, find_faults, open_or_periodic
from dens.data.store.by_format import find_shards, open_folder
from dens.data.store.lmdb import describe_missing

_DATABASES = (".db", ".json")


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
        stress: (3, 3), eV/Å^3.
        start: (n_atoms, 3), Å, the positions that it was relaxed from.
        fields: its fields by name, see `dens.data.canonical.kind_of`.
        faults: its faults, none of which concerns the shapes above.
    """

    where: str
    numbers: np.ndarray
    pos: np.ndarray
    cell: np.ndarray | None
    energy: float | None
    forces: np.ndarray | None
    free: np.ndarray
    stress: np.ndarray | None
    start: np.ndarray | None
    fields: dict[str, Any]
    faults: list[Fault]


class FolderReader:
    """Reader of folders without a training config; adapters subclass it for their configs.

    Attributes:
        levels: the fields that training needs, see `dens.data.soundness.find_fault`.
    """

    config: Mapping[str, Any] | None = None
    levels: Mapping[str, str] = USUAL

    def open(self, source: str | Path, split: str = "train") -> Any:
        """Open one of `sources`; the split is that of a config."""
        return open_folder(source)

    def is_of_fairchem2(self, dataset: Any) -> bool:
        """Tell whether a data set is one that fairchem-core 2 reads, and 1.10 does not."""
        return getattr(dataset, "suffix", None) == ".aselmdb"

    def sources(self, path: str | None) -> dict[str, Any]:
        """List what `open` takes, by name: the splits at a path.

        Raises:
            ValueError: there are none, or no path is given.
        """
        if path is None:
            raise ValueError("name a FOLDER, or a training config whose data to read: --config")
        return find_splits(path)

    def metadata(self, dataset: Any) -> dict[str, np.ndarray] | None:
        """Read ``natoms`` of the ``metadata.npz`` of all ``paths`` of a data set.

        Returns:
            ``natoms``, (n_records,) int; None if there is no such file at one of the paths.
        """
        folders = [path.parent if path.is_file() else path for path in dataset.paths]
        files = [folder / "metadata.npz" for folder in folders]
        if not files or not all(file.exists() for file in files):
            return None
        columns = []
        for file in files:
            try:
                with np.load(file) as arrays:
                    columns.append(arrays["natoms"])
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(f"{file} has no natoms that can be read: {error}") from None
        return {"natoms": np.concatenate(columns)}


def find_splits(path: str | Path) -> dict[str, Path]:
    """List the folders of records at a path by name: itself, or the ones directly below it.

    Raises:
        ValueError: there are none.
    """
    path = Path(path)
    if path.suffix in _DATABASES:
        raise ValueError(
            f"{path} is a database of ASE: give --config FILE of a training config whose "
            "dataset.train.format reads it (ase_db)"
        )
    if path.is_file() or find_shards(path):
        return {path.name: path}
    below = sorted({file.parent for folder in path.glob("*/") for file in find_shards(folder)})
    if not below:
        what = "does not exist"
        if path.exists():
            what = describe_missing(path) or "has no *.lmdb or *.aselmdb, and none right below it"
        raise ValueError(f"{path} {what}: expected a folder as dens data convert writes it")
    return {folder.name: folder for folder in below}


def read_samples(dataset: Any, levels: Mapping[str, str] = USUAL) -> Iterator[Sample | str]:
    """Yield the structures of a data set in order; a message for a record that cannot be read.

    Args:
        dataset: with a length, of PyG ``Data``.
        levels: the fields that training needs, see `dens.data.soundness.find_fault`.
    """
    for i in range(len(dataset)):
        try:
            yield as_sample(i, canonical(dataset[i]), levels)
        except Exception as error:  # a damaged record raises anything
            yield f"record {i}: {type(error).__name__}: {error}"


def as_sample(i: int, data: Data, levels: Mapping[str, str] = USUAL) -> Sample | str:
    """Convert a record in canonical form; return a message if its shapes are wrong.

    Args:
        i: its number, for messages.
        levels: as for `read_samples`.
    """
    ids = {name: data[name] for name in ("sid", "fid") if name in data}
    where = " ".join([f"record {i}", *(f"{name}={value}" for name, value in ids.items())])
    # labels go by the names of files too
    names = {label: _name_of(label, data) for label in LABELS}
    needed = {names.get(name, name): level for name, level in levels.items()}
    needed |= {name: USUAL[label] for label, name in names.items() if name in data}
    faults = list(find_faults(data, needed))
    malformed = [str(fault) for fault in faults if fault.kind == "unreadable"]
    if malformed:
        return f"{where}: {'; '.join(malformed)}"
    faulty = {fault.field for fault in faults if not fault.kind.startswith("not finite")}
    sound = {label: name for label, name in names.items() if name in data and name not in faulty}
    pos, cell = open_or_periodic(data)
    return Sample(
        where=where,
        numbers=data.atomic_numbers.numpy().astype(int),
        pos=pos,
        cell=cell,
        energy=float(data[sound["energy"]]) if "energy" in sound else None,
        forces=data[sound["forces"]].double().numpy() if "forces" in sound else None,
        free=_free(data, faulty),
        stress=read_stress(data.to_dict()),
        start=_start(data),
        fields={name: kind_of(data, name, value) for name, value in data.to_dict().items()},
        faults=faults,
    )


def _name_of(label: str, data: Data) -> str:
    """Return the name of a label in a record.

    Raises:
        ValueError: it has both names, with different values.
    """
    present = [name for name in LABELS[label] if name in data]
    if len(present) > 1 and not np.array_equal(*(np.asarray(data[name]) for name in present)):
        raise ValueError(f"it has both {' and '.join(present)}, with different values")
    return present[0] if present else LABELS[label][0]


def _free(data: Data, faulty: set[str]) -> np.ndarray:
    if "fixed" not in data or "fixed" in faulty:
        return np.ones(len(data.pos), dtype=bool)
    return data.fixed.numpy() == 0


def _start(data: Data) -> np.ndarray | None:
    if "pos_start" not in data or not data.pos_start.isfinite().all():
        return None
    return data.pos_start.double().numpy()


def expected_levels(dataset: Any) -> dict[str, str]:
    """List the fields that a data set must have: no labels if its first record has none."""
    try:
        first = canonical(dataset[0])
    except Exception:  # reading it again tells the error
        return dict(USUAL)
    names = [name for names in LABELS.values() for name in names]
    if any(name in first for name in names):
        return dict(USUAL)
    return {name: level for name, level in USUAL.items() if name not in LABELS}


def draw(n: int, sample: int | None, seed: int = 0) -> np.ndarray:
    """Draw `sample` of the numbers below `n` at random, ascending; None draws all."""
    if sample is None or sample >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:sample])
