"""Read what a conversion has written."""

from __future__ import annotations

import json
from pathlib import Path


def read(path: Path) -> list:
    """Read the records with fairchem's loader."""
    import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies its imports
    from fairchem.core.datasets.lmdb_dataset import LmdbDataset

    dataset = LmdbDataset({"src": str(path)})
    return [dataset[i] for i in range(len(dataset))]


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder, by their relative paths."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def info(folder: Path) -> dict:
    """Read ``dens_info.json`` of a converted data set."""
    return json.loads((folder / "dens_info.json").read_text(encoding="utf-8"))
