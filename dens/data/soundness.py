"""Soundness of a structure: shapes, finite numbers, atomic numbers, labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch_geometric.data import Data

_MAX_NUMBER = 118


def find_fault(data: Data, levels: Mapping[str, str]) -> str | None:
    """What is wrong with a structure, in words that name the field; None for nothing.

    Args:
        data: ``pos`` (n_atoms, 3), ``atomic_numbers`` (n_atoms,) and ``natoms`` it must have;
            ``cell``, ``fixed`` and ``tags`` must be right if it has them.
        levels: further fields that it must have, see :class:`CheckedRecords`.
    """
    fields = data.to_dict()
    pos, natoms, numbers = (fields.get(name) for name in ("pos", "natoms", "atomic_numbers"))
    if not isinstance(pos, Tensor) or pos.dim() != 2 or pos.shape[1] != 3 or len(pos) == 0:
        return f"pos must be (n_atoms, 3), got {_shown(pos)}"
    n_atoms = len(pos)
    if natoms is None or natoms != n_atoms:
        return f"natoms must be {n_atoms}, as many as pos has, got {_shown(natoms)}"
    if not isinstance(numbers, Tensor) or numbers.shape != (n_atoms,):
        return f"atomic_numbers must be ({n_atoms},), got {_shown(numbers)}"
    low, high = (end.item() for end in numbers.aminmax())
    if not (low >= 1 and high <= _MAX_NUMBER):
        return f"atomic_numbers must be 1 to {_MAX_NUMBER}, got {low} to {high}"
    needed = {"pos": "atom", **levels}
    needed.update({name: level for name, level in _OPTIONAL.items() if name in fields})
    faults = (_fault(name, fields.get(name), needed[name], n_atoms) for name in needed)
    return next((fault for fault in faults if fault is not None), None)


_OPTIONAL = {"cell": "system", "fixed": "atom", "tags": "atom"}
_ROWS = {"forces": (3,), "fixed": (), "tags": ()}  # of an atom
_SIZES = {"cell": 9, "energy": 1}  # of a structure


def _fault(name: str, value: Any, level: str, n_atoms: int) -> str | None:
    if value is None:
        return f"{name} is missing"
    if isinstance(value, (float, int)) and level != "atom":
        return None if math.isfinite(value) else f"{name} must be finite, got {value}"
    if not isinstance(value, Tensor):
        return f"{name} must be numbers, got {_shown(value)}"
    if level == "atom":
        rows = _ROWS.get(name)
        if value.shape[:1] != (n_atoms,) or (rows is not None and value.shape[1:] != rows):
            expected = f"({n_atoms}, ...)" if rows is None else (n_atoms, *rows)
            return f"{name} must be {expected}, got {_shown(value)}"
    elif name in _SIZES and value.numel() != _SIZES[name]:
        return f"{name} must be {_SIZES[name]} numbers, got {_shown(value)}"
    if name in ("pos", "forces") and not value.is_floating_point():
        return f"{name} must be floating point numbers, got {value.dtype}"
    # a sum is finite where all terms are, or nearly so
    if not math.isfinite(value.sum().item()) and not value.isfinite().all():
        return f"{name} must be finite, got NaN or infinity"
    return None


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}"
    return f"{value!r:.40}" if isinstance(value, int | float | str) else type(value).__name__
