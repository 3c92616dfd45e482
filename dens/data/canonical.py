"""Convert records to the field types that training reads, and make those of a batch alike.

Records of other programs hold the same facts in other types: cells of shape (3, 3), labels as
arrays or in double precision, no ``natoms``. Every reader of records passes them through here.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

_ENERGIES = ("energy", "y")
_IDENTIFIERS = ("sid", "fid")  # numbers or text
_NUMBERS = ("natoms", *_IDENTIFIERS)  # of one structure
_PER_ATOM = ("atomic_numbers", "fixed", "tags")  # (n_atoms,)
_ARRAYS = ("pos", "cell", "pbc", "forces", "force", *_PER_ATOM)


def canonical(data: Data) -> Data:
    """Convert the fields of a record in place; a field that fits nothing stays as it is.

    Arrays become tensors, and floating point numbers single precision; an energy becomes a Python
    float, ``natoms``, ``sid`` and ``fid`` Python numbers; ``cell`` (1, 3, 3), ``pbc`` (1, 3) bool;
    ``atomic_numbers``, ``fixed`` and ``tags`` (n_atoms,). A missing ``natoms`` is counted. A
    structure whose cell is zero is open, and an open one without a cell gets that of zeros.
    """
    fields = data._store  # membership tests of Data itself are slow
    for name, value in data.to_dict().items():
        new = _converted(name, value)
        if new is None:
            del fields[name]
        elif new is not value:
            fields[name] = new
    pos = fields.get("pos")
    if not isinstance(pos, Tensor) or pos.dim() != 2:
        return data
    if "natoms" not in fields:
        fields["natoms"] = len(pos)
    for name in _PER_ATOM:
        value = fields.get(name)
        if isinstance(value, Tensor) and value.shape == (len(pos), 1):
            fields[name] = value.view(-1)
    _settle_cell(fields)
    return data


def _converted(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray) or (
        name in _ARRAYS and isinstance(value, list | tuple | bool)
    ):
        value = _as_tensor(value)
    if name in _ENERGIES or name in _NUMBERS:
        return _as_number(name, value)
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point() and value.dtype != torch.float32:
        value = value.float()
    if name == "cell" and value.numel() == 9 and value.dim() in (1, 2, 3):
        return value.reshape(1, 3, 3).float()
    if name == "pbc" and value.numel() in (1, 3) and value.dim() < 3:
        return value.bool().view(-1).expand(3).view(1, 3)
    return value


def _as_tensor(value: Any) -> Any:
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            return value
        # torch knows no other unsigned integers
        array = array.astype(np.int64) if array.dtype.kind == "u" else array
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))
    except (TypeError, ValueError):  # ragged lists
        return value


def _as_number(name: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    elif isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], int | float):
        value = value[0]
    if name in _ENERGIES and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if name == "natoms" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _settle_cell(fields: MutableMapping[str, Any]) -> None:
    cell, pbc = fields.get("cell"), fields.get("pbc")
    if cell is None and isinstance(pbc, Tensor) and not pbc.any():
        fields["cell"] = torch.zeros(1, 3, 3)
    elif pbc is None and isinstance(cell, Tensor) and cell.numel() == 9 and not cell.any():
        fields["pbc"] = torch.zeros(1, 3, dtype=torch.bool)


def make_alike(records: Sequence[Data]) -> dict[str, Data]:
    """Make the fields of records alike, in place, so that they can be collated.

    A missing ``pbc`` is filled from the cell; identifiers of different types become text; tensors
    of different types are promoted. A field that some records lack, or that has another shape in
    some, is removed.

    Returns:
        For each field that was removed, a record that lacks it or has another shape.
    """
    stores = [data._store for data in records]
    removed = {}
    for name in dict.fromkeys(name for store in stores for name in store):
        if name == "pbc":
            _fill_pbc(stores)
        odd = [data for data, store in zip(records, stores, strict=True) if name not in store]
        if odd := odd or _of_anotherkind_of(name, records):
            removed[name] = odd[0]
            for store in stores:
                store.pop(name, None)
    return removed


def _fill_pbc(stores: Sequence[MutableMapping[str, Any]]) -> None:
    for fields in stores:
        if "pbc" not in fields and "cell" in fields:
            fields["pbc"] = torch.full((1, 3), bool(fields["cell"].any()))


def _of_anotherkind_of(name: str, records: Sequence[Data]) -> list[Data]:
    """Convert a field that all records have to one type; list records where that fails."""
    values = [data[name] for data in records]
    kinds = [kind_of(data, name, value) for data, value in zip(records, values, strict=True)]
    if len(set(kinds)) > 1:
        if name in _IDENTIFIERS:
            for data, value in zip(records, values, strict=True):
                data[name] = str(value)
            return []
        return [data for data, kind in zip(records, kinds, strict=True) if kind != kinds[0]]
    if isinstance(values[0], Tensor) and len(types := {value.dtype for value in values}) > 1:
        common = reduce(torch.promote_types, types)
        for data, value in zip(records, values, strict=True):
            data[name] = value.to(common)
    return []


def kind_of(data: Data, name: str, value: Any) -> Any:
    """Describe what a field has in common in all records that can be collated: type and shape."""
    if isinstance(value, Tensor):
        axis = data.__cat_dim__(name, value)
        shape = list(value.shape)
        if shape and axis is not None:
            del shape[axis]
        return ("tensor", value.dim(), *shape)
    if isinstance(value, Mapping):
        return (
            "mapping",
            *((key, kind_of(data, key, value[key])) for key in sorted(value, key=str)),
        )
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        return ("tensors", *(kind_of(data, name, part) for part in value))
    return "number" if isinstance(value, int | float) else type(value).__name__
