"""Choice of the backend that computes the operations of :mod:`dens.fast.ops`."""

from __future__ import annotations

import functools
import importlib.util
import logging
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
    return "triton" if device.type == "cuda" and _kernels_work(device) else "eager"


@functools.cache
def _kernels_work(device: torch.device) -> bool:
    """Try a kernel on a GPU: Triton needs a C compiler, and a card that it knows."""
    if importlib.util.find_spec("triton") is None or torch.version.hip is not None:
        return False
    try:
        from dens.fast.triton.complex_matrix import join_complex

        join_complex(torch.zeros(2, 1, device=device), torch.float32)
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        logging.warning(
            f"the fast path takes plain PyTorch, as Triton's kernels do not work on {device}: "
            f"{type(error).__name__}: {first}"
        )
        return False
    return True
