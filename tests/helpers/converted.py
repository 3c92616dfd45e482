"""Convert files with ``dens data convert`` and read the records."""

from __future__ import annotations

from pathlib import Path

from torch_geometric.data import Data

from dens.data.store.folders import LmdbFolder
from helpers.program import refused_data, run_data


def convert(out: Path, *arguments: object, split: str = "") -> tuple[list[Data], str]:
    """Convert to the folder `out`; return the records of a split, and the output of the command."""
    output = run_data("convert", *arguments, "--out", out)
    dataset = LmdbFolder(out / split)
    return [dataset[i] for i in range(len(dataset))], output


def refused(out: Path, *arguments: object) -> str:
    """Convert what must be refused; return the line of error."""
    line = refused_data("convert", *arguments, "--out", out)
    assert not out.exists()
    return line
