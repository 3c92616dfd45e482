"""What is written and said about a conversion, beside the records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import ase
import click
import numpy as np
import torch
import torch_geometric

import dens
from dens.data.references import References


def versions() -> dict[str, str]:
    """Of what decides the bytes written."""
    modules = {"ase": ase, "dens": dens, "numpy": np, "torch": torch, "pyg": torch_geometric}
    return {name: module.__version__ for name, module in modules.items()}


def write_info(folder: Path, command: str, info: dict, references: References | None) -> None:
    """Write ``dens_info.json``, which says what the data are, and ``references.npz`` if there are
    any."""
    stored = "as in the source"
    if references:
        stored = "minus the reference of each element (eV per atom)"
        np.savez(folder / "references.npz", coeff=references.coeff)
    known = {"command": command, "stored_units": "eV, Å, eV/Å", "energy": stored}
    text = json.dumps({**known, **info, "versions": versions()}, indent=1, ensure_ascii=False)
    (folder / "dens_info.json").write_text(text + "\n", encoding="utf-8")


def check_boundaries(totals: Mapping[str, Counter]) -> None:
    """Refuse to mix structures with and without periodic boundaries: a batch cannot hold both.

    Raises:
        ValueError: they are mixed.
    """
    total = sum(totals.values(), Counter())
    if total["open"] and total["periodic"]:
        raise ValueError(
            f"expected structures with periodic boundaries or without, got {total['periodic']} "
            f"with and {total['open']} without: convert them to folders of their own"
        )


def report(out: str | Path, totals: Mapping[str, Counter]) -> None:
    """Print what was written, and what was assumed."""
    for split, counts in totals.items():
        dropped = f", {counts['dropped']} dropped" if counts["dropped"] else ""
        click.echo(f"{Path(out, split)}: {counts['records']} structures{dropped}")
    total = sum(totals.values(), Counter())
    for key, assumed in (
        ("tags_from_fixed", "without tags: fixed atoms have tag 0 now, free ones 1"),
        ("tags_zero", "without tags and fixed atoms: all their atoms have tag 0 now"),
        ("other_constraints", "with constraints other than FixAtoms, which do not count here"),
        ("cells_dropped", "without periodic boundaries: their cells are not kept"),
    ):
        if total[key]:
            click.echo(f"{total[key]} structures {assumed}")
