"""Read checkpoints without running code from them.

A checkpoint is a pickle, and a pickle may call anything. PyTorch's restricted reader
(``weights_only``) builds only tensors and plain containers; :data:`dens.safe.pickles.NUMBERS` adds
the numpy numbers in older fairchem checkpoints to its allow-list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dens.safe.errors import ForbiddenClass, name_refused_by_torch, trusted
from dens.safe.pickles import NUMBERS


def safe_load(path: str | Path) -> dict[str, Any]:
    """Load the content of a checkpoint on the CPU; runs no code from it.

    Raises:
        ValueError: the file is missing, damaged or no checkpoint, or asks for a class or function
            that is not on the allow-list.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected a checkpoint, such as {path}/checkpoint.pt")
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    try:
        with _allowed():
            content = torch.load(path, map_location="cpu", weights_only=not trusted())
    except ForbiddenClass as error:
        raise ValueError(f"{path} {error}") from None
    except Exception as error:  # a damaged file raises anything
        name = name_refused_by_torch(str(error))
        if name is None:
            reason = "cannot be read as a checkpoint: it is damaged or of another kind"
        else:
            reason = str(ForbiddenClass(name, "a checkpoint does"))
        raise ValueError(f"{path} {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is no checkpoint: expected a dictionary, got {type(content).__name__}"
        )
    return content


@contextmanager
def _allowed() -> Iterator[None]:
    """Extend PyTorch's allow-list during one load."""
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals([_named(*key, kind) for key, kind in NUMBERS.items()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _named(module: str, name: str, function: Callable) -> Callable:
    """Give a function the name by which a pickle asks for it, which PyTorch's list compares."""
    if isinstance(function, type):
        return function

    def named(*args: Any) -> Any:
        return function(*args)

    named.__module__, named.__name__, named.__qualname__ = module, name, name
    return named
