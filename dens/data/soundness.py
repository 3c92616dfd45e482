"""Check a structure: shapes, finite numbers, atomic numbers, labels, cell.

Training, ``dens check``, ``dens data check``, ``dens data stats`` and conversion share these rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch_geometric.data import Data

MAX_NUMBER = 118
MIN_VOLUME = 1e-6  # of a periodic cell: Å^3, and relative to the product of its edge lengths

# names of the labels: after fairchem's key_mapping, and in files of OC20's form
LABELS = {"energy": ("energy", "y"), "forces": ("forces", "force")}
_LACKING = {name: f"no {label}" for label, names in LABELS.items() for name in names}
_OPTIONAL = {"cell": "system", "fixed": "atom", "tags": "atom"}
_ROWS = {"pos": (3,), "forces": (3,), "force": (3,), "fixed": (), "tags": ()}  # shape per atom
_SIZES = {"cell": 9, "energy": 1, "y": 1}  # numbers per structure
_FLOATING = ("pos", *LABELS["forces"])


class Fault(NamedTuple):
    """A fault of a structure; ``kind`` is its name in the findings of ``dens data check``."""

    field: str
    message: str
    kind: str = "unreadable"

    def __str__(self) -> str:
        return f"{self.field} {self.message}"


def find_fault(data: Data, levels: Mapping[str, str]) -> str | None:
    """Describe the first fault that training cannot bear; None if there is none.

    Args:
        data: must have ``pos`` (n_atoms, 3), ``atomic_numbers`` (n_atoms,) and ``natoms``;
            ``cell``, ``fixed`` and ``tags`` are checked if present.
        levels: further fields that it must have, each ``atom`` (one row per atom) or ``system``.
    """
    return next(map(str, _faults(data.to_dict(), levels)), None)


def find_faults(data: Data, levels: Mapping[str, str]) -> Iterator[Fault]:
    """Yield all faults, also two that training can bear: no free atom, a cell without volume.

    Args:
        data, levels: as for :func:`find_fault`.
    """
    fields, wrong = data.to_dict(), set()
    for fault in _faults(fields, levels):
        wrong.add(fault.field)
        yield fault
    if "fixed" in fields and "fixed" not in wrong and bool((fields["fixed"] != 0).all()):
        yield Fault("fixed", "leaves no atom free", "no free atom")
    if wrong.isdisjoint(("pos", "cell")):
        _, cell = open_or_periodic(data)
        lengths = 0 if cell is None else np.linalg.norm(cell, axis=1).prod()
        if cell is not None and abs(np.linalg.det(cell)) <= MIN_VOLUME * max(1, lengths):
            yield Fault("cell", "has no volume", "no cell")


def open_or_periodic(data: Data) -> tuple[np.ndarray, np.ndarray | None]:
    """Return positions (n_atoms, 3), Å, and the cell (3, 3), Å, or None for an open structure."""
    cell = data.cell.view(3, 3).double().numpy() if "cell" in data else np.zeros((3, 3))
    periodic = bool(data.pbc.any()) if "pbc" in data else bool(cell.any())
    return data.pos.double().numpy(), cell if periodic else None


def _faults(fields: Mapping[str, Any], levels: Mapping[str, str]) -> Iterator[Fault]:
    pos, natoms, numbers = (fields.get(name) for name in ("pos", "natoms", "atomic_numbers"))
    if not isinstance(pos, Tensor) or pos.dim() != 2 or pos.shape[1] != 3 or len(pos) == 0:
        yield Fault("pos", f"must be (n_atoms, 3), got {_shown(pos)}")
        return
    n = len(pos)
    if natoms is None or natoms != n:
        yield Fault("natoms", f"must be {n}, as many as pos has, got {_shown(natoms)}")
    if not isinstance(numbers, Tensor) or numbers.shape != (n,):
        yield Fault("atomic_numbers", f"must be ({n},), got {_shown(numbers)}")
    else:
        low, high = (end.item() for end in numbers.aminmax())
        if not (low >= 1 and high <= MAX_NUMBER):
            message = f"must be 1 to {MAX_NUMBER}, got {low} to {high}"
            yield Fault("atomic_numbers", message, "bad element")
    optional = {name: level for name, level in _OPTIONAL.items() if name in fields}
    for name, level in {"pos": "atom", **levels, **optional}.items():
        value = fields.get(name)
        if (expected := _misshapen(name, value, level, n)) is not None:
            lacks = value is None or name in LABELS["forces"]
            yield Fault(name, expected, (lacks and _LACKING.get(name)) or "unreadable")
        elif not isinstance(value, Tensor):
            if not math.isfinite(value):
                yield Fault(name, f"must be finite, got {value}", "not finite")
        # fast path: if the sum is finite, so are all terms
        elif not math.isfinite(value.sum().item()) and not value.isfinite().all():
            yield Fault(name, "must be finite, got NaN or infinity", "not finite")


def _misshapen(name: str, value: Any, level: str, n_atoms: int) -> str | None:
    if value is None:
        return "is missing"
    rows, size = _ROWS.get(name), _SIZES.get(name)
    if isinstance(value, (float, int)) and level != "atom" and size in (1, None):
        return None
    if not isinstance(value, Tensor):
        return f"must be numbers, got {_shown(value)}"
    if level == "atom":
        if value.shape[:1] != (n_atoms,) or (rows is not None and value.shape[1:] != rows):
            expected = f"({n_atoms}, ...)" if rows is None else (n_atoms, *rows)
            return f"must be {expected}, got {_shown(value)}"
    elif size is not None and value.numel() != size:
        return f"must be {size} numbers, got {_shown(value)}"
    if name in _FLOATING and not value.is_floating_point():
        return f"must be floating point numbers, got {value.dtype}"
    return None


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}"
    return f"{value!r:.40}" if isinstance(value, int | float | str) else type(value).__name__
