"""Replace attributes temporarily (monkeypatching)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, **new: Any) -> Iterator[None]:
    """Replace attributes of ``owner`` in a ``with`` block; restore or delete them afterwards."""
    old = {name: vars(owner)[name] for name in new if name in vars(owner)}
    for name, value in new.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in new:
            setattr(owner, name, old[name]) if name in old else delattr(owner, name)
