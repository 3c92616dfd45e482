"""Write and read ``.aselmdb``: ASE's databases in LMDB files, the ``ase_db`` of fairchem-core 2.

The rows are those of ``ase.db``, encoded by the package ase-db-backends. Equal records give equal
bytes: a row's time is 0, and its unique id is a hash of its contents.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from ase.calculators.calculator import all_properties
from ase.db.row import AtomsRow, atoms2dict
from ase.io.jsonio import encode
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from torch import Tensor
from torch_geometric.data import Data

from dens.constraints import fixed_atoms
from dens.data.soundness import LABELS
from dens.data.store.folders import LmdbFolder
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import data_to_atoms
from dens.safe.pickles import BadRecord

try:
    from ase_db_backends.aselmdb import decode_bytestream, encode_object
except ImportError as error:
    raise ValueError(
        f"aselmdb needs the package ase-db-backends: pip install 'fairchem-dens[formats]' ({error})"
    ) from None

# fields of a record that ASE's Atoms have; the others become the data of a row
_OF_ATOMS = {"pos", "cell", "pbc", "atomic_numbers", "natoms", "tags", "fixed", "stress"}
_OF_ATOMS |= {name for names in LABELS.values() for name in names}


def encode_row(data: Data) -> bytes:
    """Encode a record as a row of ASE's database.

    Labels become those of the structure's calculator, ``fixed`` a constraint, and all other fields,
    such as ``sid`` and ``fid``, the row's data. Numbers are written in the fewest digits that give
    the same single precision.
    """
    atoms = data_to_atoms(data)
    atoms.positions, atoms.cell = _in_short(data.pos), _in_short(atoms.cell.array)
    row = atoms2dict(atoms) | _labels(data)
    if "cell" in row:
        row["cell"] = np.asarray(row["cell"])  # JSON takes no Cell
    fields = data.to_dict()
    row["data"] = {n: _plain(fields[n]) for n in sorted(fields.keys() - _OF_ATOMS)}
    row |= {"unique_id": "", "ctime": 0.0, "mtime": 0.0, "user": "", "key_value_pairs": {}}
    row["unique_id"] = hashlib.md5(encode(row).encode(), usedforsecurity=False).hexdigest()
    return encode_object(row, compress=True, json_encode=True)


def _labels(data: Data) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label, names in LABELS.items():
        for name in names:
            if name in data:
                value = data[name]
                found[label] = _in_short(value) if isinstance(value, Tensor) else float(value)
    if "stress" in data:
        found["stress"] = full_3x3_to_voigt_6_stress(_in_short(data.stress.view(3, 3)))
    return found | ({"calculator": "unknown", "calculator_parameters": {}} if found else {})


def _in_short(values: Tensor | np.ndarray) -> np.ndarray:
    """Return single precision numbers in double precision, with as few digits as possible."""
    return np.asarray(values, dtype=np.float32).astype(str).astype(float)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _in_short(value) if value.is_floating_point() else value.numpy()
    return value


def decode_row(payload: bytes | None) -> Data:
    """Read a row of ASE's database as a record, in double precision.

    Raises:
        BadRecord: there is no row, or it cannot be read.
    """
    if payload is None:
        raise BadRecord("there is no such row")
    try:
        row = AtomsRow(decode_bytestream(payload, decompress=True, json_decode=True))
        atoms = row.toatoms()
    except (zlib.error, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise BadRecord(f"not a row of an ASE database: {type(error).__name__}: {error}") from None
    results = {name: row.get(name) for name in all_properties}
    fields = {
        **{name: _as_tensor(value) for name, value in row.data.items()},
        "pos": torch.from_numpy(atoms.positions),
        "cell": torch.from_numpy(atoms.cell.array),
        "pbc": torch.from_numpy(atoms.pbc),
        "atomic_numbers": torch.from_numpy(atoms.numbers),
        "fixed": torch.from_numpy(fixed_atoms(atoms)).float(),
        "tags": torch.from_numpy(atoms.get_tags()),
        **{name: _as_tensor(results[name]) for name in LABELS if results[name] is not None},
    }
    if results["stress"] is not None:
        stress = np.asarray(results["stress"], dtype=float)
        full = voigt_6_to_full_3x3_stress(stress) if stress.size == 6 else stress
        fields["stress"] = torch.from_numpy(full).view(1, 3, 3)
    return Data.from_dict(fields)


def _as_tensor(value: Any) -> Any:
    if isinstance(value, list):
        value = np.array(value)
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


class AseLmdbWriter(LmdbWriter):
    """Writer of one split in ``.aselmdb`` files, with the same metadata as `LmdbWriter`."""

    name = "aselmdb"
    first_key = 1
    encode: Callable[[Data], bytes] = staticmethod(encode_row)

    @staticmethod
    def closing(count: int) -> dict[bytes, bytes]:
        return {b"nextid": encode_object(count + 1, compress=True, json_encode=True)}


class AseLmdbFolder(LmdbFolder):
    """The rows of an ``.aselmdb`` file or folder, in the order of fairchem-core 2's ``ase_db``.

    Raises:
        ValueError: a file is truncated or empty, or no database.
        BadRecord: on access to a row that cannot be read.
    """

    suffix = ".aselmdb"

    @staticmethod
    def keys(transaction: lmdb.Transaction, path: Path) -> list[int]:
        """List the ids of the rows: from 1 on, without those that were deleted."""
        try:
            entries = (transaction.get(key) for key in (b"nextid", b"deleted_ids"))
            end, deleted = (
                entry and decode_bytestream(entry, decompress=True, json_decode=True)
                for entry in entries
            )
            gone = set(deleted or ())
            return [key for key in range(1, int(end or 1)) if key not in gone]
        except (zlib.error, json.JSONDecodeError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: not a database of ase-db-backends: {error}") from None

    decode = staticmethod(decode_row)
