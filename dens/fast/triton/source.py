"""Compile kernels whose loops over coefficients are written out, from generated source.

A thread keeps the coefficients of its columns in registers, so that every loop over coefficients
must be unrolled: the source of a kernel is generated for one layout.
"""

from __future__ import annotations

import linecache
import os
import zlib
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import libdevice


def launch(kernel, blocks: tuple[int, ...], *arguments: Any, **sizes: Any) -> None:
    """Launch a kernel on the GPU of its tensors, whichever GPU is the current one."""
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[blocks](*arguments, **sizes)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on a CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def compile_kernel(name: str, arguments: str, body: Iterable[str]):
    """Compile a Triton kernel ``name(arguments)`` whose body has the given lines.

    Python reads the source of a function from a file; here from the cache of its lines.
    """
    lines = ["@triton.jit", f"def {name}({arguments}):", *(f"    {line}" for line in body)]
    text = "\n".join(lines) + "\n"
    file = f"<dens kernel {name} {zlib.crc32(text.encode()):08x}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope = {"triton": triton, "tl": tl, "libdevice": libdevice, "__name__": __name__}
    exec(compile(text, file, "exec", dont_inherit=True), scope)
    return scope[name]


def indented(lines: Iterable[str]) -> list[str]:
    """Indent lines by one level."""
    return [f"    {line}" for line in lines]


def total(terms: Iterable[str]) -> str:
    """Write a sum, of at least one term."""
    return " + ".join(terms)
