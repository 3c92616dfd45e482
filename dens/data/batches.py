"""Parts of a PyG batch, for fairchem code that takes whole batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from dens.denoising.corruption import DenoisingFields


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


class WithSampleId(Dataset):
    """A data set whose structures know their number in it: ``sample_id``, (1,)."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Data:
        data = self.dataset[number]
        data.sample_id = torch.tensor([int(number)])
        return data


def split_batch(batch: Batch, size: int, collate: Callable[[list[Data]], Batch]) -> list[Batch]:
    """Split a batch into micro-batches of ``size`` structures, with their denoising fields."""
    structures = batch.to_data_list()
    micro_batches = []
    for start in range(0, len(structures), size):
        micro_batch = collate(structures[start : start + size])
        here = slice(start, start + len(micro_batch.natoms))
        atoms = slice(int(batch.ptr[here.start]), int(batch.ptr[here.stop]))
        for name in DenoisingFields.__dataclass_fields__:
            if name in batch:
                micro_batch[name] = batch[name][here if name == "sigma" else atoms]
        micro_batches.append(micro_batch)
    return micro_batches


def join_outputs(outputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the outputs of micro-batches."""
    return {name: torch.cat([out[name] for out in outputs]) for name in outputs[0]}


def non_finite_structures(
    out: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any]
) -> list[str]:
    """Name the structures with an output or a label that is not finite, and which.

    Returns:
        such as ``sid 12, fid 3: forces, label of energy``.
    """
    found: dict[int, list[str]] = {}
    labels = {f"label of {name}": batch[name] for name in targets if name in batch}
    for name, value in {**out, "positions": batch.pos, **labels}.items():
        bad = ~value.detach().reshape(len(value), -1).isfinite().all(dim=1)
        of_structure = batch.batch[bad] if len(bad) == len(batch.pos) else bad.nonzero().view(-1)
        for structure in of_structure.unique().tolist():
            found.setdefault(structure, []).append(name)
    return [f"{_name(batch, s)}: {', '.join(names)}" for s, names in sorted(found.items())]


def _name(batch: Batch, structure: int) -> str:
    ids = {key: batch[key][structure] for key in ("sid", "fid") if key in batch}
    return ", ".join(f"{key} {int(v) if isinstance(v, Tensor) else v}" for key, v in ids.items())
