"""Move batches to a device and read results from it, with the fewest waits of the host.

A host that waits for a GPU queues no work for it meanwhile. It waits wherever a number is read from
the device (``item``, ``tolist``, ``nonzero``, a mask as an index), and wherever memory that is not
pinned is copied there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# sizes that are asked of a batch in each step: field, and method of its tensor
_ASKED = {"natoms": "sum", "batch": "max", "atomic_numbers": "max"}


class HostCopy:
    """A batch as it was on the host; PyG, which moves tensors alone, leaves it there.

    Args:
        batch: the batch on the host.
        pos: its positions on the device, as they were copied there.
    """

    def __init__(self, batch: Any, pos: Tensor) -> None:
        self.batch = batch
        self._pos, self._version = pos, pos._version

    def is_of(self, batch: Any) -> bool:
        """Return whether a batch on the device still has the positions of this one."""
        return batch.pos is self._pos and batch.pos._version == self._version


def is_host(device: torch.device) -> bool:
    """Return whether a device is the host itself, which nothing waits for."""
    return device.type == "cpu"


def to_device(batch: Any, device: torch.device) -> Any:
    """Move a PyG batch to a device in place, and keep its tensors on the host.

    :func:`on_host` finds them. The number of atoms, of structures and the largest atomic number
    are answered by the host when the tensors of the batch are asked for them. On the host nothing
    is changed.
    """
    if is_host(device):
        return batch.to(device)
    host = copy.copy(batch)  # of the batch, not of its tensors
    copy_to_device(batch, device)
    batch.on_host = HostCopy(host, batch.pos)
    for name, question in _ASKED.items():
        if name in host:
            answer = getattr(host[name], question)()
            setattr(batch[name], question, lambda answer=answer: answer)
    return batch


def copy_to_device(data: Any, device: torch.device) -> Any:
    """Copy a tensor, or the tensors of a PyG batch in place, through pinned memory."""
    if device.type == "cuda":
        data = data.pin_memory()
    return data.to(device, non_blocking=True)


def on_host(batch: Any) -> Any:
    """Return a batch whose tensors are on the host: that of :func:`to_device`, or a copy.

    It is copied, which waits for the device, if it was moved otherwise or atoms have moved since.
    """
    kept = getattr(batch, "on_host", None)
    if kept is not None and kept.is_of(batch):
        return kept.batch
    return batch if is_host(batch.pos.device) else copy.copy(batch).to("cpu")


def read(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors of floating-point numbers to the host in one transfer: it waits once."""
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    if all(is_host(tensor.device) for tensor in tensors.values()):
        return tensors
    numbers = copy_to_host(torch.cat([t.reshape(-1).double() for t in tensors.values()]))
    parts = numbers.split([tensor.numel() for tensor in tensors.values()])
    return {
        name: part.view(tensor.shape).to(tensor.dtype)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


def copy_to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to the host, which waits for it."""
    return tensor.cpu()
