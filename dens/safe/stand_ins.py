"""Stand-ins for what a pickled record may name: ``Data``, tensors, and numpy numbers and arrays.

Each does what the named class or function does to good arguments, and refuses others.
"""

from __future__ import annotations

import io
import math
import re
from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch_geometric.data import Data

from dens.safe.errors import BadRecord, ForbiddenClass, name_refused_by_torch


class _Bytes(NamedTuple):
    """Storage of a tensor: its memory and the type of its numbers."""

    memory: torch.UntypedStorage
    dtype: torch.dtype


_TYPES = {
    b"Float": torch.float32,
    b"Double": torch.float64,
    b"Half": torch.float16,
    b"BFloat16": torch.bfloat16,
    b"Long": torch.int64,
    b"Int": torch.int32,
    b"Short": torch.int16,
    b"Char": torch.int8,
    b"Byte": torch.uint8,
    b"Bool": torch.bool,
}
# A storage as torch.save has written it into pickles since 2017: magic number, protocol and system;
# type, address, device and length; the list of addresses. The content follows.
_SAVED = re.compile(
    rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.\x80\x02M\xe9\x03\."
    rb"\x80\x02}q\x00\(X\x10\0\0\0protocol_versionq\x01M\xe9\x03X\r\0\0\0little_endianq\x02\x88"
    rb"X\n\0\0\0type_sizesq\x03}q\x04\(X\x05\0\0\0shortq\x05K\x02X\x03\0\0\0intq\x06K\x04"
    rb"X\x04\0\0\0longq\x07K[\x04\x08]uu\."
    rb"\x80\x02\(X\x07\0\0\0storageq\x00ctorch\n(\w+)Storage\nq\x01"
    rb"X.\0\0\0\d+q\x02X\x03\0\0\0cpuq\x03(?:K.|M..|J....)Ntq\x04Q\."
    rb"\x80\x02\]q\x00X.\0\0\0\d+q\x01a\.(.{8})",
    re.DOTALL,
)


def storage(payload: bytes) -> _Bytes:
    """Replace ``torch.storage._load_from_bytes``, which unpickles without restriction."""
    match = _SAVED.match(payload)
    if match is None or match[1] not in _TYPES:
        return _load_storage(payload)
    dtype = _TYPES[match[1]]
    given, expected = len(payload) - match.end(), int.from_bytes(match[2], "little")
    if given != expected * dtype.itemsize:
        raise BadRecord(f"a tensor of {expected} numbers ({dtype}) is stored in {given} bytes")
    if given == 0:
        return _Bytes(torch.UntypedStorage(), dtype)
    memory = torch.UntypedStorage.from_buffer(payload, dtype=torch.uint8, offset=match.end())
    return _Bytes(memory, dtype)


def _load_storage(payload: bytes) -> _Bytes:
    """Read a storage written in another way with PyTorch's restricted reader, which is slower."""
    try:
        saved = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        return _Bytes(saved._untyped_storage, saved.dtype)
    except Exception as error:  # a damaged pickle raises anything
        name = name_refused_by_torch(str(error))
        if name is not None:
            raise ForbiddenClass(name) from None
        raise BadRecord("the storage of a tensor is damaged") from None


def tensor(storage: _Bytes, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    """Replace ``torch._utils._rebuild_tensor_v2``, which gives access beyond the storage.

    The other arguments (requires_grad, hooks, metadata) are ignored: they are not data.
    """
    if type(storage) is not _Bytes:
        raise BadRecord(f"a tensor has a {type(storage).__name__} for its storage")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0 or (
        math.prod(size) and last >= storage.memory.nbytes() // storage.dtype.itemsize
    ):
        raise BadRecord(f"a tensor of shape {tuple(size)} is larger than what is stored for it")
    return torch.empty(0, dtype=storage.dtype).set_(storage.memory, offset, size, stride)


class dtype:
    """Stand-in for ``numpy.dtype`` of numbers and texts; a bad state makes numpy's own crash."""

    __module__ = "numpy"  # PyTorch's reader finds it by this name

    def __init__(self, kind: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"[<>|=]?([biufcSU]\d+|\?)", kind):
            raise ForbiddenClass(f"numpy.dtype({kind!r})")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: tuple) -> None:
        order, fields = state[1], state[2:5]
        if order not in ("<", ">", "|", "=") or any(field is not None for field in fields):
            raise BadRecord("a numpy array of a kind that is not for numbers or texts")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """Stand-in for ``numpy.ndarray``; checks the state that it gets."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, content = state
        if min(shape, default=0) < 0 or math.prod(shape) * kind.dtype.itemsize != len(content):
            raise BadRecord(f"an array of shape {shape} is stored in {len(content)} bytes")
        super().__setstate__((1, shape, kind.dtype, bool(fortran), bytes(content)))


def empty_array(*_: Any) -> _Array:
    """Replace ``numpy.core.multiarray._reconstruct``; the array gets its state later."""
    return np.empty(0, np.uint8).view(_Array)


def array_of_buffer(content: bytes, kind: dtype, shape: tuple, order: str) -> _Array:
    """Replace ``numpy.core.numeric._frombuffer``."""
    return np.frombuffer(content, kind.dtype).reshape(shape, order=order).view(_Array)


def number(kind: dtype, content: bytes) -> np.generic:
    """Replace ``numpy.core.multiarray.scalar``."""
    (value,) = np.frombuffer(content, kind.dtype)
    return value


def encode_latin1(text: str, encoding: str) -> bytes:
    """Replace ``_codecs.encode``, by which protocol 2 writes bytes; some codecs are zip bombs."""
    if encoding != "latin1":
        raise ForbiddenClass(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


class DataState:
    """Stand-in for PyG's ``Data`` during unpickling; it only keeps the state."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class StorageState(DataState):
    """Stand-in for the storage of PyG's ``Data``."""


_FIELDS = {
    *(torch.Tensor, _Array, int, float, complex, bool, str, bytes, type(None)),
    *(dict, list, tuple, set, frozenset, OrderedDict, defaultdict),
    *(np.dtype(code).type for code in "?bhilqBHILQefdgFDGSU"),
}


def as_data(found: DataState, size: int) -> Data:
    """Make the ``Data`` of a pickle of ``size`` bytes.

    Raises:
        BadRecord: fields are missing, of a type that data do not have, or larger than the pickle.
    """
    fields = found.state
    # PyG before version 2 kept the fields in the object itself, with None for missing ones
    if isinstance(fields, dict) and "_store" in fields:
        store = fields["_store"]
        fields = store.state.get("_mapping") if isinstance(store, StorageState) else None
    elif isinstance(fields, dict):
        fields = {name: value for name, value in fields.items() if value is not None}
    if not isinstance(fields, dict):
        raise BadRecord("not a record: a Data without fields")
    for name, value in fields.items():
        if type(value) not in _FIELDS:
            raise BadRecord(f"field {name} holds a {type(value).__name__}")
        if type(value) is _Array:
            fields[name] = value.view(np.ndarray)
        # the state that a pickle gives a tensor can make it larger
        if type(value) is torch.Tensor and value.untyped_storage().nbytes() > size:
            raise BadRecord(f"field {name} is larger than what is stored for it")
    return Data(**fields)
