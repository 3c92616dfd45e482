"""Read checkpoints without running code from them.

A checkpoint is a pickle, and a pickle may call anything. PyTorch's restricted reader
(``weights_only``) builds tensors and plain containers only; to these,
:data:`dens.safe.pickles.NUMBERS` adds the numpy numbers that older fairchem checkpoints hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dens.safe.pickles import NUMBERS, ForbiddenClass, name_refused_by_torch, trusted


def safe_load(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        ValueError: there is no such file; it is no checkpoint; it asks for a class or function that
            is not on the list, none of which was run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    try:
        with _allowed():
            content = torch.load(path, map_location="cpu", weights_only=not trusted())
    except ForbiddenClass as error:
        raise ValueError(f"{path} {error}") from None
    except Exception as error:  # a damaged file raises anything
        raise ValueError(_reason(path, str(error))) from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is no checkpoint: expected a dictionary, got {type(content).__name__}"
        )
    return content


def _reason(path: Path, message: str) -> str:
    name = name_refused_by_torch(message)
    if name is None:
        return f"{path} cannot be read as a checkpoint: it is damaged or of another kind"
    return f"{path} {ForbiddenClass(name, 'a checkpoint does')}"


@contextmanager
def _allowed() -> Iterator[None]:
    """Extend PyTorch's list for the time of one load."""
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals([_named(*key, kind) for key, kind in NUMBERS.items()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _named(module: str, name: str, function: Callable) -> Callable:
    """``function`` under the name by which a pickle asks for it, as PyTorch's list expects."""
    if isinstance(function, type):
        return function

    def named(*args: Any) -> Any:
        return function(*args)

    named.__module__, named.__name__, named.__qualname__ = module, name, name
    return named
