"""Read the data of DeePMD-kit, folders with ``type.raw`` and ``set.*``, through dpdata."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from dens.data.sources.reading import UNLABELLED


def is_deepmd(path: Path) -> bool:
    """Tell whether a folder is a system of DeePMD-kit in its npy format."""
    return (path / "type.raw").is_file() and any(path.glob("set.*/coord.npy"))


def read_deepmd(path: str, labels: bool = True) -> list[Atoms]:
    """Read all frames, in Å and eV.

    Args:
        labels: False for structures only.

    Raises:
        ModuleNotFoundError: dpdata is not installed (extra ``formats``).
        ValueError: no energies or forces.
    """
    import dpdata

    if any(Path(path).glob("set.*/real_atom_types.npy")):
        systems = dpdata.MultiSystems.from_file(path, fmt="deepmd/npy/mixed", labeled=labels)
        return [atoms for system in systems for atoms in _structures(system.data, labels)]
    kind = dpdata.LabeledSystem if labels else dpdata.System
    return list(_structures(kind(path, fmt="deepmd/npy").data, labels))


def _structures(data: dict[str, Any], is_labelled: bool) -> Iterator[Atoms]:
    symbols = np.asarray(data["atom_names"])[data["atom_types"]]
    for name in ("energies", "forces") if is_labelled else ():
        if name not in data:
            raise ValueError(
                f"expected energies and forces in its set.*, got no {name}; {UNLABELLED}"
            )
    is_open = bool(data.get("nopbc"))
    for i, pos in enumerate(data["coords"]):
        atoms = Atoms(symbols, pos, cell=None if is_open else data["cells"][i], pbc=not is_open)
        if not is_labelled:
            yield atoms
            continue
        labels = {"energy": float(data["energies"][i]), "forces": data["forces"][i]}
        if "virials" in data and not is_open:
            stress = -data["virials"][i].reshape(3, 3) / atoms.get_volume()
            labels["stress"] = full_3x3_to_voigt_6_stress(stress)
        atoms.calc = SinglePointCalculator(atoms, **labels)
        yield atoms
