"""Run a training step on a CPU as if on a GPU: count kernels, and points where the host waits.

Tensors are on the pretended GPU once they were moved there by :mod:`dens.transfer`, or marked, or
computed from others that are. Operations on them are launches unless they are views. An operation
that takes a tensor of the host as well copies it there, from memory that is not pinned.
"""

from __future__ import annotations

import collections
import traceback
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dens import transfer
from dens.patching import replaced

# operations that hand numbers, or the size of their result, to the host
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2"}
_WAITS |= {"unique_dim", "unique_consecutive", "_linalg_check_errors"}
_READS = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}
_NO_KERNEL = {"detach", "_unsafe_view", "lift_fresh", "_reshape_alias", "_local_scalar_dense"}
_NO_KERNEL |= {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "scalar_tensor",
}


class PretendedGPU(TorchDispatchMode):
    """Context in which this process counts what a GPU would do.

    Attributes:
        launches: number of each operation.
        waits: number of each place in the code where the host waits: file, function and operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[str] = collections.Counter()
        self._storages: dict[int, Any] = {}  # of the GPU; kept, so that no address comes twice
        # made from nothing, by an operation: of the GPU once they meet a tensor that is there
        self._made: dict[int, tuple[Any, str]] = {}

    def put(self, module: nn.Module) -> None:
        """Move a module to the GPU, as ``module.to`` does."""
        module._apply(lambda tensor: self._mark(tensor.clone()))

    def __enter__(self) -> PretendedGPU:
        self._stack = ExitStack()
        self._stack.enter_context(
            replaced(
                transfer,
                is_host=lambda device: False,
                copy_to_device=self._copy_to_device,
                copy_to_host=self._copy_to_host,
            )
        )
        self._stack.enter_context(_Reads(self))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def has(self, tensor: Tensor) -> bool:
        """Return whether a tensor is on the GPU."""
        return tensor.untyped_storage().data_ptr() in self._storages

    def wait(self, operation: str) -> None:
        """Count a point where the host waits, under the place in the code that leads there."""
        for frame in reversed(traceback.extract_stack()):
            for package in ("dens/", "fairchem/core/", "e3nn/"):
                _, found, file = frame.filename.rpartition(f"/{package}")
                if found and not frame.filename.endswith("benchmarks/pretended.py"):
                    self.waits[f"{package}{file}, {frame.name}: {operation}, {frame.line}"] += 1
                    return
        self.waits[operation] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out, name = func(*args, **kwargs), func.__name__.split(".")[0]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if any(map(self.has, inputs)):
            self._use(inputs)
            if _waits(name, args, kwargs):
                self.wait(name)
            if not func.is_view and name not in _NO_KERNEL:
                self.launches[name] += 1
            for tensor in outputs:
                self._mark(tensor)
        elif all(self._address(tensor) in self._made for tensor in inputs):
            for tensor in outputs:
                self._made[self._address(tensor)] = tensor.untyped_storage(), name
        return out

    def _use(self, inputs: list[Tensor]) -> None:
        for tensor in inputs:
            if self.has(tensor) or not tensor.numel():
                continue
            _, name = self._made.pop(self._address(tensor), (None, None))
            if name is not None:  # it was made there
                self.launches[name] += name not in _NO_KERNEL
                self._mark(tensor)
            elif tensor.dim():  # single numbers are arguments of the kernel
                self.wait("copy to the device")

    def _mark(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr():
            self._storages[storage.data_ptr()] = storage
        return tensor

    @staticmethod
    def _address(tensor: Tensor) -> int:
        return tensor.untyped_storage().data_ptr()

    def _copy_to_device(self, data: Any, device: torch.device) -> Any:
        if isinstance(data, Tensor):
            self.launches["copy to the device"] += 1
            return self._mark(data.clone())
        return data.apply(lambda tensor: self._copy_to_device(tensor, device))

    def _copy_to_host(self, tensor: Tensor) -> Tensor:
        self.wait("copy to the host")
        with torch._C.DisableTorchFunction():  # counted already
            return torch.from_numpy(tensor.numpy().copy())


class _Reads(TorchFunctionMode):
    """Methods that read a tensor without an operation that could be seen."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _READS and self.gpu.has(args[0]):
            self.gpu.wait(func.__name__)
        return func(*args, **(kwargs or {}))


def _waits(name: str, args: tuple, kwargs: dict) -> bool:
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
        return bool(masks)
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return name in _WAITS
