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

from dens.graphs.images import full_lattice

MAX_NUMBER = 118
APART = 1000.0  # Å, between images in a direction that is not periodic

# names of the labels: after fairchem's key_mapping, and in files of OC20's form
LABELS = {"energy": ("energy", "y"), "forces": ("forces", "force")}
USUAL = {"energy": "system", "forces": "atom", "fixed": "atom"}  # levels of what S2EF needs
_LACKING = {name: f"no {label}" for label, names in LABELS.items() for name in names}
_LACKING |= {"fixed": "no fixed", "cell": "no cell"}
_OPTIONAL = {"cell": "system", "pbc": "system"}
_OPTIONAL |= dict.fromkeys(("fixed", "tags", "pos_start"), "atom")
# shape per atom
_ROWS = dict.fromkeys(("pos", "pos_start", "forces", "force"), (3,)) | {"fixed": (), "tags": ()}
_SIZES = {"cell": 9, "pbc": 3, "energy": 1, "y": 1}  # numbers per structure
_FLOATING = ("pos", "pos_start", *LABELS["forces"])


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
            ``cell``, ``fixed``, ``tags`` and ``pos_start`` are checked if present; the last is all
            NaN for a structure without a start.
        levels: further fields that it must have, each ``atom`` (one row per atom) or ``system``.
            If ``cell`` is among them, a periodic structure also needs a cell with a volume.
    """
    fields = data.to_dict()
    fault = next(_faults(fields, levels), None)
    if fault is None and "cell" in levels:
        fault = _without_volume(fields)
    return None if fault is None else str(fault)


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
    if wrong.isdisjoint(("pos", "cell", "pbc")) and (fault := _without_volume(fields)):
        yield fault


def _without_volume(fields: Mapping[str, Any]) -> Fault | None:
    pbc = periodic_directions(fields)
    if not pbc.any():
        return None
    if "cell" not in fields:
        return Fault("cell", f"is missing, and pbc is {pbc.tolist()}", "no cell")
    try:
        full_lattice(_cell(fields), pbc)
    except ValueError:
        return Fault("cell", f"has no volume in its periodic directions {pbc.tolist()}", "no cell")
    return None


def periodic_directions(fields: Mapping[str, Any]) -> np.ndarray:
    """Return the periodic directions of a record, (3,) bool; without ``pbc``, its cell tells."""
    if "pbc" in fields:
        return fields["pbc"].view(3).bool().numpy()
    return np.full(3, "cell" in fields and bool(fields["cell"].any()))


def _cell(fields: Mapping[str, Any]) -> np.ndarray:
    return fields["cell"].view(3, 3).double().numpy() if "cell" in fields else np.zeros((3, 3))


def open_or_periodic(data: Data) -> tuple[np.ndarray, np.ndarray | None]:
    """Return positions and the cell of a record, as for a search in all three directions.

    Returns:
        (n_atoms, 3), Å; and (3, 3), Å, or None for an open structure. The vector of a direction
        without period is replaced by one so long that no image is near.
    """
    fields = data.to_dict()
    pos, pbc = data.pos.double().numpy(), periodic_directions(fields)
    if not pbc.any():
        return pos, None
    cell = _cell(fields)
    if not pbc.all():
        cell = full_lattice(cell, pbc)
        cell[~pbc] *= np.ptp(pos, axis=0).sum() + APART
    return pos, cell


def _faults(fields: Mapping[str, Any], levels: Mapping[str, str]) -> Iterator[Fault]:
    pos, natoms, numbers = (fields.get(name) for name in ("pos", "natoms", "atomic_numbers"))
    if not isinstance(pos, Tensor) or pos.dim() != 2 or pos.shape[1] != 3 or len(pos) == 0:
        yield Fault("pos", f"must be (n_atoms, 3), got {_shown(pos)}")
        return
    n = len(pos)
    if not _is_count(natoms, n):
        yield Fault("natoms", f"must be {n}, as many as pos has, got {_shown(natoms)}")
    if not isinstance(numbers, Tensor) or numbers.shape != (n,):
        yield Fault("atomic_numbers", f"must be ({n},), got {_shown(numbers)}")
    else:
        low, high = (end.item() for end in numbers.aminmax())
        if not (low >= 1 and high <= MAX_NUMBER):
            message = f"must be 1 to {MAX_NUMBER}, got {low} to {high}"
            yield Fault("atomic_numbers", message, "bad element")
        elif numbers.is_floating_point() and (numbers != numbers.round()).any():
            yield Fault("atomic_numbers", "must be whole numbers", "bad element")
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
            if name == "pos_start" and value.isnan().all():  # it has no start
                continue
            yield Fault(name, "must be finite, got NaN or infinity", "not finite")


def _is_count(natoms: Any, n_atoms: int) -> bool:
    if isinstance(natoms, Tensor) and natoms.numel() != 1:
        return False
    return natoms is not None and bool(natoms == n_atoms)


def _misshapen(name: str, value: Any, level: str, n_atoms: int) -> str | None:
    if value is None:
        return "is missing"
    rows, size = _ROWS.get(name), _SIZES.get(name)
    if (
        isinstance(value, float | int)
        and not isinstance(value, bool)
        and level != "atom"
        and size in (1, None)
    ):
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
