"""Number, split, select and join structures of PyG batches, for code that takes whole batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from dens.fields import SAMPLE_ID, select_rows
from dens.objective import Objective


def select_structures(batch, out: dict[str, Tensor], keep: Tensor) -> tuple[Data, dict]:
    """Select structures of a batch, and the outputs of the model for them.

    Args:
        batch: a PyG batch as collated from the data set, possibly with fields set later.
        out: outputs, (n_atoms, ...) or (n_structures, ...).
        keep: (n_structures,) bool.

    Returns:
        A batch-like ``Data`` with the tensors that came from the data set, and the outputs.
    """
    atoms = keep[batch.batch]
    part = Data(batch=(keep.cumsum(0) - 1)[batch.batch[atoms]])
    for name, boundaries in batch._slice_dict.items():  # levels of the data set's own fields
        value = batch[name]
        if not isinstance(value, Tensor) or len(value) != boundaries[-1]:
            continue  # edges, and values that are no tensors
        sizes = torch.as_tensor(boundaries).diff().to(keep.device)
        part[name] = value[keep.repeat_interleave(sizes)]
    rows = {len(atoms): atoms, len(keep): keep}
    return part, {name: value[rows[len(value)]] for name, value in out.items()}


class WithSampleId(Dataset):
    """Data set that adds to each structure its index as ``sample_id``, (1,)."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Data:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Data]:
        """Read the records of a batch; data loaders call this."""
        if hasattr(self.dataset, "__getitems__"):
            records = self.dataset.__getitems__(numbers)
        else:
            records = [self.dataset[number] for number in numbers]
        for number, data in zip(numbers, records, strict=True):
            data[SAMPLE_ID.name] = torch.tensor([int(number)])
        return records


def split_batch(
    batch: Batch, size: int, collate: Callable[[list[Data]], Batch], objective: Objective
) -> list[Batch]:
    """Split a batch into micro-batches of ``size`` structures, with the objective's fields."""
    structures = batch.to_data_list()
    micro_batches = []
    for start in range(0, len(structures), size):
        micro_batch = collate(structures[start : start + size])
        stop = start + len(micro_batch.natoms)
        atoms = slice(int(batch.ptr[start]), int(batch.ptr[stop]))
        if rows := select_rows(objective.fields, batch, atoms, slice(start, stop)):
            objective.set_fields(micro_batch, rows)
        micro_batches.append(micro_batch)
    return micro_batches


def join_outputs(outputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the outputs of micro-batches."""
    return {name: torch.cat([out[name] for out in outputs]) for name in outputs[0]}
