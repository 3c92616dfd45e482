"""Read pickled records without running code from them: the allow-list of pickles.

A pickle may call anything it can name. :data:`ALLOWED` lists what pickles may name here, in records
and in checkpoints (:mod:`dens.safe.checkpoints`): the parts of PyTorch Geometric's ``Data``,
tensors, numpy numbers and arrays, and plain containers. Most names on it stand for a function or
class of :mod:`dens.safe.stand_ins`, which does what the named one does to good arguments and
refuses others: no call, and no state given to an object, reaches memory or objects outside the
record.

A user who trusts a file that needs more sets the environment variable ``DENS_TRUST_FILES=1``, which
reads every file of that run without restriction.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

from torch_geometric.data import Data

from dens.safe import stand_ins
from dens.safe.errors import BadRecord, ForbiddenClass, trusted
from dens.safe.memo import check_memo


class _Function:
    """Function that a pickle can call but not change: a pickle may set attributes of objects."""

    __slots__ = ("_run",)
    _run: Callable

    def __init__(self, run: Callable) -> None:
        object.__setattr__(self, "_run", run)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)


_BUILTINS = ("builtins", "__builtin__")  # the latter in protocol 2
_PLAIN = (dict, list, set, frozenset, int, float, str, bool, complex)
_NUMPY = ("numpy.core", "numpy._core")  # the latter since numpy 2

# what checkpoints may name too
NUMBERS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): stand_ins.dtype,
    ("_codecs", "encode"): _Function(stand_ins.encode_latin1),
    **{(f"{core}.multiarray", "scalar"): _Function(stand_ins.number) for core in _NUMPY},
}

ALLOWED: dict[tuple[str, str], Any] = {
    **NUMBERS,
    ("torch_geometric.data.data", "Data"): stand_ins.DataState,
    ("torch_geometric.data.data", "DataEdgeAttr"): None,  # classes that Data mentions
    ("torch_geometric.data.data", "DataTensorAttr"): None,
    ("torch_geometric.data.storage", "GlobalStorage"): stand_ins.StorageState,
    ("torch._utils", "_rebuild_tensor_v2"): _Function(stand_ins.tensor),
    ("torch.storage", "_load_from_bytes"): _Function(stand_ins.storage),
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    # pickles of protocol 2 call this for empty bytes
    **{(module, "bytes"): _Function(lambda: b"") for module in _BUILTINS},
    **{(module, kind.__name__): kind for module in _BUILTINS for kind in _PLAIN},
    ("numpy", "ndarray"): None,  # the first argument of _reconstruct
    **{(f"{c}.multiarray", "_reconstruct"): _Function(stand_ins.empty_array) for c in _NUMPY},
    **{(f"{c}.numeric", "_frombuffer"): _Function(stand_ins.array_of_buffer) for c in _NUMPY},
}


class _Unpickler(pickle.Unpickler):
    """C unpickler that looks up every class and function in the allow-list."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise ForbiddenClass(f"{module}.{name}") from None


def loads(payload: bytes | None) -> Any:
    """Unpickle a ``Data`` in the layout of PyG 2, or numbers, strings and containers.

    Args:
        payload: the pickle; None, which databases give for a missing key, is an error.

    Raises:
        ForbiddenClass: it asks for a class or function that is not on the list.
        BadRecord: it is missing or damaged.
    """
    if payload is None:
        raise BadRecord("there is no record under this key")
    try:
        if trusted():
            return pickle.loads(payload)
        check_memo(payload)
        found = _Unpickler(io.BytesIO(payload)).load()
        if isinstance(found, stand_ins.DataState):
            return stand_ins.as_data(found, len(payload))
        return found
    except BadRecord:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise BadRecord(f"not a pickled record: {type(error).__name__}: {error}") from None


def load(file: Any) -> Any:
    """Unpickle an open file with :func:`loads`."""
    return loads(file.read())


def load_record(payload: bytes | None) -> Data:
    """Unpickle a record with :func:`loads`; convert a ``Data`` of PyG 1 to today's layout.

    Raises:
        BadRecord: also if it is no ``Data``.
    """
    found = loads(payload)
    if not isinstance(found, Data):
        raise BadRecord(f"not a record: expected a Data of PyG, got {type(found).__name__}")
    if "_store" in vars(found):
        return found
    return Data(**{name: value for name, value in vars(found).items() if value is not None})
