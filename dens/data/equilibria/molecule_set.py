"""Divide equilibrium molecules into train, val and test, and write them without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from ase import Atoms

from dens.data.convert.build import write_info
from dens.data.convert.splits import SPLITS
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import atoms_to_data
from dens.files import atomic_folder


@dataclass
class MoleculeSet:
    """Equilibrium structures of a published set.

    Attributes:
        structures: atomic numbers (n_atoms,) and positions (n_atoms, 3), Å, of each.
        sids: identifier of each, given once.
        molecules: the molecule of each; all structures of a molecule go to one split.
        left_out: lines that tell what was left out.
    """

    structures: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    sids: list[int | str] = field(default_factory=list)
    molecules: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, numbers: np.ndarray, pos: np.ndarray, sid: int | str, molecule: str) -> None:
        """Append a structure."""
        self.structures.append((numbers, pos))
        self.sids.append(sid)
        self.molecules.append(molecule)


def choose_sizes(
    available: int, given: Mapping[str, int | None], published: Mapping[str, int]
) -> dict[str, int]:
    """Choose how many molecules each split gets.

    Args:
        available: number of molecules.
        given: what the user says for each split; None for the published number.
        published: as of the paper; a test split that is not in it gets the rest. If there are fewer
            molecules than those of the full set, all numbers shrink alike.

    Returns:
        For ``train``, ``val`` and ``test``, each at least 1.

    Raises:
        ValueError: more molecules than there are, or a split without any.
    """
    total = sum(published.values()) + ("test" not in published)
    scale = min(1.0, available / total)
    sizes = {name: int(count * scale) or 1 for name, count in published.items()}
    sizes |= {name: count for name, count in given.items() if count is not None}
    rest = available - sum(sizes.values())
    sizes.setdefault("test", rest)
    if min(sizes.values()) < 1 or sum(sizes.values()) > available:
        numbers = ", ".join(f"{name} {sizes[name]}" for name in SPLITS)
        raise ValueError(
            f"expected at least 1 molecule for each split, and {available} at most in all, got "
            f"{numbers}: change --train, --val or --test"
        )
    return {name: sizes[name] for name in SPLITS}


def write_molecules(
    out: Path,
    command: str,
    molecules: MoleculeSet,
    given: Mapping[str, int | None],
    published: Mapping[str, int],
    seed: int,
    origin: Mapping[str, Any],
) -> Iterator[str]:
    """Write ``out/train``, ``out/val`` and ``out/test``; yield the lines of the report.

    Args:
        command: for ``dens_info.json``.
        given, published: see `choose_sizes`.
        seed: of the random splits.
        origin: further entries of ``dens_info.json``.

    Raises:
        ValueError: see `choose_sizes` and `dens.data.store.records.atoms_to_data`.
    """
    names, of_molecule = np.unique(molecules.molecules, return_inverse=True)
    sizes = choose_sizes(len(names), given, published)
    order = np.random.default_rng(seed).permutation(len(names))
    ends = np.cumsum(list(sizes.values()))
    parts = np.split(order, ends)
    rest = int(np.isin(of_molecule, parts.pop()).sum())
    counts = {}
    with atomic_folder(out) as folder:
        for name, part in zip(sizes, parts, strict=True):
            numbers = np.flatnonzero(np.isin(of_molecule, part)).tolist()
            counts[name] = {"molecules": len(part), "structures": len(numbers)}
            with LmdbWriter(folder / name) as writer:
                for i in numbers:
                    atoms, sid = Atoms(*molecules.structures[i]), molecules.sids[i]
                    writer.write(atoms_to_data(atoms, sid=sid, fid=0, labels=False))
        info = {"labels": "none", "energy": "not kept", "splits": counts, "seed": seed}
        info |= {"in_no_split": rest, "left_out": molecules.left_out, **origin}
        write_info(folder, command, info, None)
    for name, count in counts.items():
        yield f"{out / name}: {count['structures']} structures of {count['molecules']} molecules"
    yield from molecules.left_out
    if any(given.get(name) is None and sizes[name] < count for name, count in published.items()):
        full = ", ".join(f"{name} {count}" for name, count in published.items())
        yield f"fewer molecules than the full set: the published sizes ({full}) were scaled"
    if rest:
        yield f"{rest} structures are in no split: left out"


def split_options(published: Mapping[str, int]) -> Callable[[Callable], Callable]:
    """Make a decorator that adds --out and the options for splits to a command.

    Args:
        published: see `choose_sizes`.
    """

    def add(command: Callable) -> Callable:
        command = click.option("--seed", default=0, show_default=True, help="Of the splits.")(
            command
        )
        for name in reversed(SPLITS):
            text = f"Molecules of {name}.  [default: {published.get(name, 'the rest')}]"
            command = click.option(f"--{name}", type=int, help=text)(command)
        path = click.Path(path_type=Path)
        return click.option("--out", required=True, type=path, help="Folder to make.")(command)

    return add
