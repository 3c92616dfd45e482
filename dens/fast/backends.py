"""Choice of the backend that computes the operations of :mod:`dens.fast.ops`."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch

BACKENDS = ("eager", "triton")
_chosen: list[str] = []  # not of a context or thread: backward passes run in another one


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Use one backend within a ``with`` block, whatever the device.

    Raises:
        ValueError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    _chosen.append(backend)
    try:
        yield
    finally:
        _chosen.pop()


def backend_of(device: torch.device) -> str:
    """Choose the backend for tensors on a device."""
    if _chosen:
        return _chosen[-1]
    return "triton" if device.type == "cuda" and _has_triton() else "eager"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
