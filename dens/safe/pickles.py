"""Read pickled records without running code from them.

A pickle may call anything it can name. :data:`ALLOWED` is the list of what pickles may name here,
for records and for checkpoints (:mod:`dens.safe.checkpoints`): what PyTorch Geometric's ``Data``,
tensors, numpy numbers and arrays, and plain containers are made of. Most names on it stand for code
of this module that does what the named function does to good arguments, and refuses others: none of
it can be called with arguments, or given a state, that would reach memory or objects outside the
record.

Whoever trusts a file that needs more sets the environment variable ``DENS_TRUST_FILES=1``, which
reads every file of that run without restriction.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch_geometric.data import Data

TRUST = "DENS_TRUST_FILES"


class BadRecord(ValueError):
    """A record that cannot be read, or lacks something; the message says what."""


class ForbiddenClass(BadRecord):
    """A pickle asked for a class or function that is not on the list; it was not run."""

    def __init__(self, name: str, reader: str = "such data do") -> None:
        super().__init__(
            f"asks for {name}, which {reader} not need; none of its code was run. "
            f"If you trust where it comes from: {TRUST}=1"
        )


def name_refused_by_torch(message: str) -> str | None:
    """What PyTorch's restricted reader was asked for, in the words of its versions since 2.4."""
    found = re.search(r"GLOBAL (\S+)", message) or re.search(
        r"(?:unsupported class|unrecognized function|objects, but got) (.+)", message
    )
    return found and found.group(1)


def trusted() -> bool:
    """Whether the user trusts all files."""
    return os.environ.get(TRUST) == "1"


def loads(payload: bytes | None) -> Any:
    """What a pickle holds: a ``Data`` in the layout of PyG 2, or numbers, strings and containers.

    Args:
        payload: the pickle; None, which databases give for a key that is not there, is an error.

    Raises:
        ForbiddenClass: it asks for something that is not on the list.
        BadRecord: it is missing or damaged.
    """
    if payload is None:
        raise BadRecord("there is no record under this key")
    try:
        if trusted():
            return pickle.loads(payload)
        _check_memo(payload)
        found = _Unpickler(io.BytesIO(payload)).load()
        return _as_data(found, len(payload)) if isinstance(found, _Data) else found
    except BadRecord:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise BadRecord(f"not a pickled record: {type(error).__name__}: {error}") from None


def load(file: Any) -> Any:
    """:func:`loads` for an open file."""
    return loads(file.read())


def load_record(payload: bytes | None) -> Data:
    """:func:`loads` for what has to be a ``Data``; that of PyG 1 is brought into today's layout.

    Raises:
        BadRecord: also where it is something else.
    """
    found = loads(payload)
    if not isinstance(found, Data):
        raise BadRecord(f"not a record: expected a Data of PyG, got {type(found).__name__}")
    if "_store" in vars(found):
        return found
    return Data(**{name: value for name, value in vars(found).items() if value is not None})


class _Unpickler(pickle.Unpickler):
    """The C unpickler, which asks here for every class and function."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise ForbiddenClass(f"{module}.{name}") from None


# ---- PyTorch Geometric's Data ----------------------------------------------------------------


class _Data:
    """In the place of ``Data`` while it is read, and of its storage."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Storage(_Data):
    pass


def _as_data(found: _Data, size: int) -> Data:
    """The ``Data`` of a pickle of ``size`` bytes."""
    fields = found.state
    # PyG before version 2 kept the fields in the object itself, and None for those it had not
    if isinstance(fields, dict) and "_store" in fields:
        store = fields["_store"]
        fields = store.state.get("_mapping") if isinstance(store, _Storage) else None
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


# ---- tensors ---------------------------------------------------------------------------------


class _Bytes(NamedTuple):
    """A storage of torch: its memory, and what is in it."""

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
# its type, address, place and length; the list of addresses. The content follows.
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


def _storage(payload: bytes) -> _Bytes:
    """``torch.storage._load_from_bytes``, which would unpickle its argument without restriction."""
    match = _SAVED.match(payload)
    if match is None or match[1] not in _TYPES:
        # anything else: PyTorch's restricted reader, which is slower
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
    try:
        saved = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        return _Bytes(saved._untyped_storage, saved.dtype)
    except Exception as error:  # a damaged pickle raises anything
        name = name_refused_by_torch(str(error))
        if name is not None:
            raise ForbiddenClass(name) from None
        raise BadRecord("the storage of a tensor is damaged") from None


def _tensor(storage: _Bytes, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    """``torch._utils._rebuild_tensor_v2``, which would give memory beyond the storage.

    Whether it needs a gradient, its hooks and its metadata say nothing about data.
    """
    if type(storage) is not _Bytes:
        raise BadRecord(f"a tensor has a {type(storage).__name__} for its storage")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0 or (
        math.prod(size) and last >= storage.memory.nbytes() // storage.dtype.itemsize
    ):
        raise BadRecord(f"a tensor of shape {tuple(size)} is larger than what is stored for it")
    return torch.empty(0, dtype=storage.dtype).set_(storage.memory, offset, size, stride)


# ---- numpy -----------------------------------------------------------------------------------


class dtype:
    """``numpy.dtype`` for numbers and texts; a real one, given a bad state, crashes the process."""

    __module__ = "numpy"  # by which PyTorch's reader finds it

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
    """``numpy.ndarray`` while it is read."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, content = state
        if min(shape, default=0) < 0 or math.prod(shape) * kind.dtype.itemsize != len(content):
            raise BadRecord(f"an array of shape {shape} is stored in {len(content)} bytes")
        super().__setstate__((1, shape, kind.dtype, bool(fortran), bytes(content)))


def _empty_array(*_: Any) -> _Array:
    """``numpy.core.multiarray._reconstruct``; the array gets its state later."""
    return np.empty(0, np.uint8).view(_Array)


def _array_of_buffer(content: bytes, kind: dtype, shape: tuple, order: str) -> _Array:
    """``numpy.core.numeric._frombuffer``."""
    return np.frombuffer(content, kind.dtype).reshape(shape, order=order).view(_Array)


def _number(kind: dtype, content: bytes) -> np.generic:
    """``numpy.core.multiarray.scalar``."""
    (number,) = np.frombuffer(content, kind.dtype)
    return number


def _latin1(text: str, encoding: str) -> bytes:
    """``_codecs.encode``, with which pickles of protocol 2 write bytes; some codecs are bombs."""
    if encoding != "latin1":
        raise ForbiddenClass(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """``bytes``, with which pickles of protocol 2 write an empty one."""
    return b""


# ---- the list --------------------------------------------------------------------------------


class _Function:
    """A function that a pickle can call and not change: it may set attributes of what it names."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable) -> None:
        object.__setattr__(self, "_run", run)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)


_BUILTINS = ("builtins", "__builtin__")  # the latter in protocol 2
_PLAIN = (dict, list, set, frozenset, int, float, str, bool, complex)

# what checkpoints may name too
NUMBERS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): dtype,
    ("_codecs", "encode"): _Function(_latin1),
    ("numpy.core.multiarray", "scalar"): _Function(_number),
    ("numpy._core.multiarray", "scalar"): _Function(_number),  # since numpy 2
}

ALLOWED: dict[tuple[str, str], Any] = {
    **NUMBERS,
    ("torch_geometric.data.data", "Data"): _Data,
    ("torch_geometric.data.data", "DataEdgeAttr"): None,  # classes that Data mentions
    ("torch_geometric.data.data", "DataTensorAttr"): None,
    ("torch_geometric.data.storage", "GlobalStorage"): _Storage,
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch.storage", "_load_from_bytes"): _Function(_storage),
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    **{(module, "bytes"): _Function(_no_bytes) for module in _BUILTINS},
    **{(module, kind.__name__): kind for module in _BUILTINS for kind in _PLAIN},
    ("numpy", "ndarray"): None,  # the first argument of _reconstruct
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): _Function(_empty_array)
        for core in ("core", "_core")
    },
    **{
        (f"numpy.{core}.numeric", "_frombuffer"): _Function(_array_of_buffer)
        for core in ("core", "_core")
    },
}

_FIELDS = {
    *(torch.Tensor, _Array, int, float, complex, bool, str, bytes, type(None)),
    *(dict, list, tuple, set, frozenset, OrderedDict, defaultdict),
    *(np.dtype(code).type for code in "?bhilqBHILQefdgFDGSU"),
}


# ---- memory ----------------------------------------------------------------------------------


def _operand_sizes() -> list[int | None]:
    """For each opcode the bytes that follow; -1 where those tell, None where there is no such."""
    sizes: list[int | None] = [None] * 256
    for opcode in pickletools.opcodes:
        fixed = 0 if opcode.arg is None else max(opcode.arg.n, -1)
        sizes[ord(opcode.code)] = -1 if opcode.name == "LONG_BINPUT" else fixed
    return sizes


_SIZES = _operand_sizes()
_LENGTHS = {
    ord(opcode.code): {-2: 1, -3: 4, -4: 4, -5: 8}[opcode.arg.n]
    for opcode in pickletools.opcodes
    if opcode.arg is not None and opcode.arg.n < -1
}
_PUT, _LONG_PUT, _GLOBAL, _INST, _STOP = b"prci."


def _check_memo(payload: bytes) -> None:
    """Refuse a pickle that would number a single object in the billions.

    The C unpickler allocates room for all numbers below, so that one changed bit takes 70 GB.
    """
    at, code = 0, None
    while code != _STOP:
        code = payload[at]
        at += 1
        size = _SIZES[code]
        if size is None:
            return  # the unpickler says what is wrong
        at += size if size >= 0 else _operand_size(code, payload, at)


def _operand_size(code: int, payload: bytes, at: int) -> int:
    if code in _LENGTHS:
        prefix = _LENGTHS[code]
        return prefix + int.from_bytes(payload[at : at + prefix], "little")
    if code == _LONG_PUT:
        number, size = int.from_bytes(payload[at : at + 4], "little"), 4
    else:
        end = payload.index(b"\n", at) + 1
        if code in (_GLOBAL, _INST):  # two lines
            end = payload.index(b"\n", end) + 1
        number, size = int(payload[at:end]) if code == _PUT else 0, end - at
    if number > len(payload):
        raise BadRecord(f"not a pickled record: it numbers an object {number}")
    return size
