"""Parts of a PyG batch, for fairchem code that takes whole batches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data


def of_atoms(batch) -> Tensor:
    """(n_atoms,) bool, all true."""
    return torch.ones(len(batch.pos), dtype=torch.bool, device=batch.pos.device)


def select_structures(batch, out: dict[str, Tensor], keep: Tensor) -> tuple[Data, dict]:
    """The structures ``keep`` of a batch, and the model's outputs for them.

    Args:
        batch: a PyG batch as collated from the data set, possibly with fields set later.
        out: outputs, (n_atoms, ...) or (n_structures, ...).
        keep: (n_structures,) bool.

    Returns:
        A batch-like ``Data`` with the tensors that came from the data set, and the outputs.
    """
    atoms = keep[batch.batch]
    part = Data(batch=(keep.cumsum(0) - 1)[batch.batch[atoms]])
    for name, boundaries in batch._slice_dict.items():
        value = batch[name]
        if not isinstance(value, Tensor) or len(value) != boundaries[-1]:
            continue  # edges, and what is no tensor
        sizes = torch.as_tensor(boundaries).diff().to(keep.device)
        part[name] = value[keep.repeat_interleave(sizes)]
    rows = {len(atoms): atoms, len(keep): keep}
    return part, {name: value[rows[len(value)]] for name, value in out.items()}
