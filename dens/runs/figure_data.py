"""Arrays from which the figures of an evaluation are drawn."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray


@dataclass(frozen=True)
class DenoisedStructure:
    """A structure before corruption, corrupted and denoised by the model."""

    numbers: NDArray  # (n_atoms,) | atomic numbers
    cell: NDArray  # (3, 3) | Å, rows are vectors
    pos: NDArray  # (n_atoms, 3) | Å
    corrupted: NDArray  # (n_atoms, 3) | Å
    denoised: NDArray  # (n_atoms, 3) | Å

    def atoms(self) -> dict[str, Atoms]:
        """Convert the three stages to ASE's Atoms."""
        stages = {"original": self.pos, "corrupted": self.corrupted, "denoised": self.denoised}
        return {k: Atoms(self.numbers, v, cell=self.cell, pbc=True) for k, v in stages.items()}


@dataclass(frozen=True)
class FigureData:
    """Data of all figures: n corrupted atoms at level ``sigma``, m atoms in clean structures."""

    sigma: float  # Å
    noise: NDArray  # (n, 3) | Å
    noise_pred: NDArray  # (n, 3) | Å
    noise_force_norm: NDArray  # (n,) | eV/Å, of the encoded forces
    forces: NDArray  # (m, 3) | eV/Å
    forces_pred: NDArray  # (m, 3) | eV/Å
    forces_numbers: NDArray  # (m,) | atomic numbers
    sigmas: NDArray  # (k,) | Å
    noise_mae: NDArray  # (k,) | Å
    noise_mae_hidden: NDArray  # (k,) | Å, with the forces hidden from the model
    structures: list[DenoisedStructure] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Write a ``.npz`` file."""
        arrays = asdict(self)
        for i, structure in enumerate(arrays.pop("structures")):
            arrays |= {f"structures.{i}.{name}": value for name, value in structure.items()}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> FigureData:
        """Read a file of :meth:`save`."""
        arrays: dict[str, Any] = {}
        structures: dict[str, Any] = {}
        with np.load(path) as file:
            for name, array in file.items():
                _, *place = name.split(".")
                if place:
                    structures.setdefault(place[0], {})[place[1]] = array
                else:
                    arrays[name] = array
        arrays["sigma"] = float(arrays["sigma"])
        return cls(**arrays, structures=[DenoisedStructure(**s) for s in structures.values()])
