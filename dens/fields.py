"""The table of the batch fields that DeNS adds: the level and the unit of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Field:
    """A tensor of a batch with one row for each atom, or for each structure."""

    name: str
    level: Literal["atom", "structure"]
    unit: str = ""


SAMPLE_ID = Field("sample_id", "structure")  # (n_structures,) | index in the training set
# (n_structures,) bool | whether a host lets a structure be corrupted; without the field all may be
CORRUPTIBLE = Field("corruptible", "structure")
DENOISING_FIELDS = (
    Field("noise", "atom", "Å"),  # (n_atoms, 3) | displacement, zero outside C
    Field("noise_mask", "atom"),  # (n_atoms,) bool | the set C of corrupted atoms
    Field("sigma", "structure", "Å"),  # (n_structures,) | zero where clean
    Field("noise_forces", "atom", "eV/Å"),  # (n_atoms, 3) | forces to encode, zero outside C
)


def select_rows(
    fields: Iterable[Field], batch: Any, atoms: Any, structures: Any
) -> dict[str, Tensor]:
    """Select rows of those of the fields that a batch has, by name.

    Args:
        batch: a PyG batch, or any object with attributes.
        atoms, structures: slices, masks or indices of the rows to take at each level.
    """
    rows = {"atom": atoms, "structure": structures}
    present = [field for field in fields if hasattr(batch, field.name)]
    return {field.name: getattr(batch, field.name)[rows[field.level]] for field in present}
