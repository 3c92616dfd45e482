"""Records in OC20's form: make PyTorch Geometric ``Data`` from ASE structures, and pickle them."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Mapping

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from ase.geometry import wrap_positions
from torch_geometric.data import Data

from dens.constraints import fixed_atoms
from dens.data.soundness import find_fault, periodic_directions

# Fixed, because the highest protocol differs between Python versions.
PICKLE_PROTOCOL = 4

_LABEL_LEVELS = {"y": "system", "force": "atom", "fixed": "atom"}
_PLAIN_NAMES = {"y": "energy", "force": "forces", "pos": "positions"}  # for messages


def atoms_to_data(
    atoms: Atoms,
    *,
    sid: int | str,
    fid: int,
    energy: float | None = None,
    forces: np.ndarray | None = None,
    md: bool | None = None,
    labels: bool = True,
) -> Data:
    """Make an S2EF record with the fields and types of OC20 from a labelled structure.

    ``pos`` (n_atoms, 3) float32, Å, wrapped into the cell, since fairchem's neighbour search misses
    pairs with an atom outside it; ``cell`` (1, 3, 3) float32, Å, rows are vectors;
    ``atomic_numbers`` (n_atoms,) float32; ``natoms`` int; ``tags`` (n_atoms,) int64;
    ``fixed`` (n_atoms,) float32, 1 for atoms that constraints hold; ``y`` float, eV;
    ``force`` (n_atoms, 3) float32, eV/Å; ``sid``; ``fid``; and ``md`` (0 or 1) where it is known.

    A structure without periodic boundaries also has ``pbc`` (1, 3) bool, all false; its positions
    are not wrapped, and its cell is zero.

    Args:
        atoms: periodic in all three directions or in none.
        sid: identifier of the system.
        fid: number of the frame within the system.
        energy: eV; by default from the structure's calculator.
        forces: (n_atoms, 3), eV/Å; by default from the calculator, constraints not applied.
        md: whether the frame comes from molecular dynamics; None if unknown.
        labels: False for a record without ``y`` and ``force``.

    Raises:
        ValueError: periodic in some directions only, a periodic cell without volume, no labels, or
            a field that training would refuse (see `dens.data.soundness.find_fault`).
    """
    where = f"structure sid={sid} fid={fid}"
    is_open = _is_open(atoms, where)
    known = _read_labels(atoms, energy, forces, where) if labels else {}
    pos, cell = atoms.positions, atoms.cell.array
    data = Data(
        pos=_float32(pos if is_open else wrap_positions(pos, cell, pbc=True, eps=0)),
        cell=_float32(np.zeros((3, 3)) if is_open else cell).view(1, 3, 3),
        atomic_numbers=_float32(atoms.numbers),
        natoms=len(atoms),
        tags=torch.tensor(atoms.get_tags(), dtype=torch.int64),
        fixed=_float32(fixed_atoms(atoms)),
        **known,
        sid=sid,
        fid=int(fid),
    )
    if is_open:
        data.pbc = torch.zeros(1, 3, dtype=torch.bool)
    if md is not None:
        data.md = int(md)
    _check(data, where)
    return data


def _read_labels(
    atoms: Atoms, energy: float | None, forces: np.ndarray | None, where: str
) -> dict[str, float | torch.Tensor]:
    try:
        if energy is None:
            energy = atoms.get_potential_energy(apply_constraint=False)
        if forces is None:
            forces = atoms.get_forces(apply_constraint=False)
    except RuntimeError as error:  # ASE's error for a missing calculator or property
        raise ValueError(f"{where}: no energy or no forces: {error}") from error
    return {"y": float(energy), "force": _float32(forces)}


def _is_open(atoms: Atoms, where: str) -> bool:
    if not atoms.pbc.any():
        return True
    if not atoms.pbc.all() or abs(atoms.cell.volume) < 1e-6:
        raise ValueError(
            f"{where}: expected pbc in all three directions and a cell with a volume, or no pbc, "
            f"got pbc {atoms.pbc.tolist()} and cell {atoms.cell.array.tolist()}"
        )
    return False


def _check(data: Data, where: str, more: Mapping[str, str] | None = None) -> None:
    levels = _LABEL_LEVELS if "y" in data else {"fixed": "atom"}
    fault = find_fault(data, {**levels, **(more or {})})
    if fault:
        name, _, rest = fault.partition(" ")
        raise ValueError(f"{where}: {_PLAIN_NAMES.get(name, name)} {rest}")


def add_stress(data: Data, stress: np.ndarray) -> None:
    """Add the field ``stress``, (1, 3, 3) float32, eV/Å^3, to a record.

    Args:
        stress: (3, 3), eV/Å^3, with ASE's sign: positive where the cell would contract.

    Raises:
        ValueError: it is not finite.
    """
    data.stress = _float32(np.asarray(stress) + 0.0).view(1, 3, 3)  # no -0
    _check(data, f"structure sid={data.sid} fid={data.fid}", {"stress": "system"})


def add_start(data: Data, start: np.ndarray) -> bool:
    """Add the field ``pos_start``, (n_atoms, 3) float32, Å, to a record; it is not wrapped.

    Args:
        start: (n_atoms, 3), Å, the positions that the structure was relaxed from; all NaN if it has
            no start.

    Returns:
        Whether it has one.
    """
    data.pos_start = _float32(start)
    _check(data, f"structure sid={data.sid} fid={data.fid}", {"pos_start": "atom"})
    return bool(np.isfinite(start).all())


def data_to_atoms(data: Data) -> Atoms:
    """Make an ASE structure of a record; atoms that are ``fixed`` get a constraint.

    It has no labels. Positions stay where they are, within the cell or not.
    """
    atoms = Atoms(
        data.atomic_numbers.long().numpy(),
        data.pos.double().numpy(),
        cell=data.cell.view(3, 3).double().numpy() if "cell" in data else None,
        pbc=periodic_directions(data.to_dict()),
        tags=data.tags.numpy() if "tags" in data else None,
    )
    if "fixed" in data and (data.fixed != 0).any():
        atoms.set_constraint(FixAtoms(mask=(data.fixed != 0).numpy()))
    return atoms


def pickle_record(data: Data) -> bytes:
    """Pickle a record reproducibly; plain ``pickle.loads`` reads it.

    Equal records give equal bytes, unlike with ``pickle.dumps``: torch writes each storage's memory
    address, a view includes its whole storage, and pickle abbreviates strings that happen to be the
    same object.

    Raises:
        ValueError: a field is neither a tensor, nor a number, nor a string.
    """
    fields = {key: _canonical(key, value) for key, value in data.to_dict().items()}
    buffer = io.BytesIO()
    _RecordPickler(buffer, PICKLE_PROTOCOL).dump(Data.from_dict(fields))
    return buffer.getvalue()


class _RecordPickler(pickle.Pickler):
    """Pickler that writes tensors as torch does, with "0" for the storage's memory address."""

    def reducer_override(self, obj):
        if not isinstance(obj, torch.storage.TypedStorage):
            return NotImplemented
        load, (payload,) = obj.__reduce__()
        address = str(obj._untyped_storage._cdata).encode()
        return load, (payload.replace(_pickled_text(address), _pickled_text(b"0")),)


def _pickled_text(text: bytes) -> bytes:
    # opcode BINUNICODE: torch pickles storages with protocol 2
    return b"X" + struct.pack("<I", len(text)) + text


def _canonical(key: str, value):
    """Copy a value, so that it shares no memory with others."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return value.encode().decode()
    if isinstance(value, (bool, int, float)):
        return value
    raise ValueError(
        f"record field {key} must be a tensor, a number or a string, got {type(value).__name__}"
    )


def _float32(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float32)
