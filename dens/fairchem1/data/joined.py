"""Join several LMDB data sets to one: ``src`` may be a list of paths, or a pattern."""

from __future__ import annotations

import bisect
import glob
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from fairchem.core.datasets.base_dataset import BaseDataset
from torch_geometric.data import Data

from dens.data.canonical import make_alike


def list_sources(src: str | Path | Sequence[str | Path]) -> list[str]:
    """List the LMDB files or folders that ``src`` names: one, a pattern, or a list of these.

    Raises:
        ValueError: it is an empty list.
    """
    paths = []
    for name in [src] if isinstance(src, str | Path) else sorted(map(str, src)):
        found = [] if os.path.exists(name) else sorted(glob.glob(str(name)))
        paths += found or [str(name)]
    if not paths:
        raise ValueError("src must name data, got an empty list")
    return paths


def alike(dataset: Any, numbers: Sequence[int]) -> list[Data]:
    """Read records of a data set and remove the fields that not all of them have."""
    records = [dataset[number] for number in numbers]
    make_alike(records)
    return records


class JoinedRecords(BaseDataset):
    """Several LMDB data sets, one after the other in the order of their paths.

    Args:
        config: of all of them.
        parts: the data sets; there are no metadata unless all have some.
    """

    def __init__(self, config: dict[str, Any], parts: Sequence[BaseDataset]) -> None:
        super().__init__({**config, "src": [part.config["src"] for part in parts], "lin_ref": None})
        self.config = config
        self._parts = list(parts)
        self._ends = list(accumulate(map(len, parts)))
        self.num_samples = self._ends[-1]

    def __getitem__(self, idx: int):
        part, number = self._find(idx)
        data = self._parts[part][number]
        data.id = f"{part}_{number}"
        return data

    def __getitems__(self, numbers: Sequence[int]) -> list[Data]:
        """Read the records of a batch, with the same fields in all; data loaders call this."""
        return alike(self, numbers)

    def where(self, idx: int) -> str:
        """Name the file of an entry, its key there and its index, for messages."""
        part, number = self._find(idx)
        return self._parts[part].where(number).replace(f"(index {number})", f"(index {idx})")

    @cached_property
    def _metadata(self) -> dict[str, np.ndarray]:
        columns = [part._metadata for part in self._parts]
        without = [
            part.config["src"] for part, c in zip(self._parts, columns, strict=True) if not c
        ]
        if without and len(without) < len(columns):
            logging.warning(
                f"no metadata.npz in {', '.join(without)}: those of the others are unused"
            )
        names = set.intersection(*map(set, columns))
        return {name: np.concatenate([column[name] for column in columns]) for name in names}

    def _find(self, idx: int) -> tuple[int, int]:
        part = bisect.bisect(self._ends, int(idx))
        return part, int(idx) - (self._ends[part - 1] if part else 0)
