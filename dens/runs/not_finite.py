"""Name the structures of a batch whose numbers are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ase import Atoms
from torch import Tensor


def non_finite_structures(
    out: Mapping[str, Tensor], batch: Any, targets: Iterable[str]
) -> list[str]:
    """Name the structures with a non-finite output, position or label, and which of them it is.

    Args:
        out: outputs, (n_atoms, ...) or (n_structures, ...), by name.
        batch: a batch of PyG or of fairchem-core 2.
        targets: the fields whose labels must be finite.

    Returns:
        For each structure a text such as ``sid 12, fid 3: forces, label of energy``.
    """
    found: dict[int, list[str]] = {}
    labels = {f"label of {name}": batch[name] for name in targets if name in batch}
    for name, value in {**out, "positions": batch.pos, **labels}.items():
        bad = ~value.detach().reshape(len(value), -1).isfinite().all(dim=1)
        of_structure = batch.batch[bad] if len(bad) == len(batch.pos) else bad.nonzero().view(-1)
        for structure in of_structure.unique().tolist():
            found.setdefault(structure, []).append(name)
    return [f"{name_structure(batch, s)}: {', '.join(n)}" for s, n in sorted(found.items())]


def name_structure(batch: Any, structure: int) -> str:
    """Name a structure of a batch by its ids, or its place and formula where it has none."""
    ids = {key: batch[key][structure] for key in ("sid", "fid") if key in batch}
    ids = {key: int(v) if isinstance(v, Tensor) else v for key, v in ids.items()}
    if named := [f"{key} {value}" for key, value in ids.items() if value != ""]:
        return ", ".join(named)
    numbers = batch.atomic_numbers[batch.batch == structure].long().tolist()
    return f"{structure} of the batch, {Atoms(numbers).get_chemical_formula()}"
