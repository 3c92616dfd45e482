"""Malicious pickles, which run code when they are read without restriction, and files of them."""

from __future__ import annotations

import functools
import io
import operator
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data


class Call:
    """Object that calls a function when it is unpickled."""

    def __init__(self, function: Callable, *args) -> None:
        self._reduced = function, args

    def __reduce__(self):
        return self._reduced


def touch(path: Path) -> Call:
    return Call(os.system, f"touch {path}")


def _raw(module: str, name: str, argument: str, protocol: int) -> bytes:
    """Pickle a call of a function by any name, even dotted, which ``pickle.dumps`` refuses."""
    text = b"X" + len(argument).to_bytes(4, "little") + argument.encode()
    if protocol < 4:
        named = f"c{module}\n{name}\n".encode()
    else:
        named = b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name)) + b"\x93"
    return b"\x80" + bytes([protocol]) + named + text + b"\x85R."


def _saved(content: object, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _module(sentinel: Path) -> str:
    """Write a module that creates the sentinel file when it is imported."""
    (sentinel.parent / "users_module.py").write_text(
        f"open({str(sentinel)!r}, 'w').close()\nclass Thing:\n    def __init__(self, text): pass\n"
    )
    return "users_module"


_nested = torch.storage._load_from_bytes
_ARRAYS = "numpy.core.multiarray._reconstruct"
if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
    _ARRAYS = "numpy._core.multiarray._reconstruct"

# name -> (function of sentinel file and protocol that makes the object to pickle, or the pickle;
# name that the reader of records refuses; name that the reader of checkpoints refuses, if another)
HOSTILE: dict[str, tuple] = {
    "os.system": (lambda s, p: touch(s), "posix.system"),
    "eval": (lambda s, p: Call(eval, f"open({str(s)!r}, 'w').close()"), "builtins.eval"),
    "exec": (lambda s, p: Call(exec, f"open({str(s)!r}, 'w').close()"), "builtins.exec"),
    "Popen": (lambda s, p: Call(subprocess.Popen, ["touch", str(s)]), "subprocess.Popen"),
    "torch.hub": (lambda s, p: Call(torch.hub.load, str(s.parent), "model"), "torch.hub.load"),
    "getattr": (lambda s, p: Call(getattr, Call(__import__, "os"), "system"), "builtins.getattr"),
    "partial": (lambda s, p: functools.partial(os.system, f"touch {s}"), "functools.partial"),
    "attrgetter": (lambda s, p: operator.attrgetter("x.y"), "operator.attrgetter"),
    "user's module": (lambda s, p: _raw(_module(s), "Thing", "", p), "users_module.Thing"),
    "dotted": (
        lambda s, p: _raw("torch.serialization", "os.system", f"touch {s}", p),
        "torch.serialization.os.system",
    ),
    "dotted hub": (lambda s, p: _raw("torch", "hub.load", str(s), p), "torch.hub.load"),
    "in a Data": (
        lambda s, p: Data(pos=torch.zeros(2, 3), tags=[{"x": touch(s)}]),
        "posix.system",
        "torch_geometric.data.data.DataEdgeAttr",
    ),
    "in a storage": (
        lambda s, p: Call(_nested, _saved(touch(s), zipped=False)),
        "posix.system",
        "torch.storage._load_from_bytes",
    ),
    "in a zipped storage": (
        lambda s, p: Call(_nested, _saved(touch(s), zipped=True)),
        "posix.system",
        "torch.storage._load_from_bytes",
    ),
    "in an array": (
        lambda s, p: np.array([touch(s)], dtype=object),
        "numpy.dtype('O8')",
        _ARRAYS,
    ),
}
RUNS = ("os.system", "eval", "exec", "Popen", "user's module", "dotted", *list(HOSTILE)[-4:])


def payload(name: str, sentinel: Path, protocol: int = 4) -> bytes:
    """Pickle an entry of :data:`HOSTILE`."""
    made = HOSTILE[name][0](sentinel, protocol)
    return made if isinstance(made, bytes) else pickle.dumps(made, protocol)


def write_checkpoint(path: Path, pickled: bytes, zipped: bool) -> None:
    """Write a file like ``torch.save`` around a pickle of protocol 2."""
    if not zipped:
        head = (pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(b"".join([*head, pickled, pickle.dumps([], 2)]))
        return
    with (
        zipfile.ZipFile(io.BytesIO(_saved({}, zipped=True))) as source,
        zipfile.ZipFile(path, "w") as file,
    ):
        for entry in source.namelist():
            content = pickled if entry.endswith("data.pkl") else source.read(entry)
            file.writestr(entry, content)
