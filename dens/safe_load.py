"""Read checkpoints without running code from them.

A checkpoint is a pickle, and a pickle may call anything. PyTorch's restricted reader
(``weights_only``) builds tensors and plain containers only; :data:`_ALLOWED` adds the numpy numbers
that older fairchem checkpoints hold. Whoever trusts a file that needs more sets the environment
variable ``DENS_TRUST_FILES=1``, which reads every file of that run without restriction.
"""

from __future__ import annotations

import _codecs
import functools
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

_TRUST = "DENS_TRUST_FILES"


def _at(module: str, function: Callable) -> Callable:
    """``function`` as if it were defined in ``module``, by which a pickle names it."""

    @functools.wraps(function)
    def named(*args: Any) -> Any:
        return function(*args)

    named.__module__ = module
    return named


_scalar = np.float64(0).__reduce__()[0]
_ALLOWED = [
    # a numpy number is its constructor, whose module was renamed in numpy 2, a dtype and bytes
    _at("numpy.core.multiarray", _scalar),
    _at("numpy._core.multiarray", _scalar),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
    _codecs.encode,
]


def safe_load(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        ValueError: there is no such file; it is no checkpoint; it asks for a class or function that
            is not on the list, none of which was run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    trusted = os.environ.get(_TRUST) == "1"
    try:
        with _allowed():
            content = torch.load(path, map_location="cpu", weights_only=not trusted)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(_reason(path, str(error))) from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is no checkpoint: expected a dictionary, got {type(content).__name__}"
        )
    return content


def _reason(path: Path, message: str) -> str:
    # the name of what was asked for, in the words of the PyTorch versions since 2.4
    found = re.search(r"GLOBAL (\S+)", message) or re.search(
        r"(?:unsupported class|unrecognized function|objects, but got) (.+)", message
    )
    if found is None:
        return f"{path} cannot be read as a checkpoint: it is damaged or of another kind"
    return (
        f"{path} asks for {found.group(1)}, which a checkpoint does not need; none of its code was "
        f"run. If you trust where it comes from: {_TRUST}=1"
    )


@contextmanager
def _allowed() -> Iterator[None]:
    """Extend PyTorch's list for the time of one load."""
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals(_ALLOWED)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
