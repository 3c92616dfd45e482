r"""Rotations of the edges' features, degree by degree, as lines of kernels.

A rotation does not mix degrees: of its matrix only the block of each degree is read, a fourth
(lmax 4) to a sixth (lmax 6) of the dense product. A thread holds one channel of an edge, or of an
atom where a kernel sums over its edges one after another, so that no two threads add to one number.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dens.fast.triton.source import indented, launch, total

EDGE = {"num_warps": 4}
ATOM = {"num_warps": 4}


class BlockWriter:
    """Writer of kernels for edges whose rows have the given degrees.

    Columns of the rotation run over the degrees from the lowest to the highest, degree-major.
    """

    def __init__(self, rows: tuple[int, ...], dtype: str) -> None:
        self.rows, self.dtype = rows, dtype
        self.degrees = sorted(set(rows))
        self.lowest = self.degrees[0]
        self.columns = (self.degrees[-1] + 1) ** 2 - self.lowest**2

    def rows_of(self, degree: int) -> list[int]:
        return [i for i, d in enumerate(self.rows) if d == degree]

    def columns_of(self, degree: int) -> range:
        return range(degree**2 - self.lowest**2, (degree + 1) ** 2 - self.lowest**2)

    def load(self, name: str, pointer: str) -> str:
        return f"{name} = tl.load({pointer}, mask=exists, other=0.0).to(tl.{self.dtype})"

    def matrix(self, degree: int) -> list[str]:
        """Load the block of a degree of the rotation of edge ``e``."""
        edge = f"rotation + e * {len(self.rows) * self.columns}"
        return [
            f"d{i}_{k} = tl.load({edge} + {i * self.columns + k}).to(tl.{self.dtype})"
            for i in self.rows_of(degree)
            for k in self.columns_of(degree)
        ]

    def into(self, row: int) -> str:
        """The row of D x."""
        columns = self.columns_of(self.rows[row])
        return total(f"d{row}_{k} * x{k}" for k in columns)

    def out_of(self, degree: int, value: str) -> list[str]:
        """Add the degree of D^T v to the sums ``t``."""
        rows = self.rows_of(degree)
        return [
            f"t{k} += " + total(f"d{i}_{k} * {value}{i}" for i in rows)
            for k in self.columns_of(degree)
        ]

    def zeros(self) -> list[str]:
        return [f"t{k} = tl.zeros((BN,), dtype=tl.{self.dtype})" for k in range(self.columns)]

    def of_edge(self, width: str) -> list[str]:
        return [
            "e = tl.program_id(0).to(tl.int64)",
            "c = tl.program_id(1) * BN + tl.arange(0, BN)",
            f"exists = c < {width}",
        ]

    def of_atom(self) -> list[str]:
        return [
            "atom = tl.program_id(0).to(tl.int64)",
            "c = tl.program_id(1) * BN + tl.arange(0, BN)",
            "exists = c < C",
            *self.zeros(),
        ]

    def over_edges(self, lists: str, body: list[str]) -> list[str]:
        """Loop over the edges of ``atom``."""
        return [
            f"for j in range(tl.load({lists}_starts + atom), tl.load({lists}_starts + atom + 1)):",
            *indented([f"e = tl.load({lists}_order + j)", *body]),
        ]

    def store_sums(self, pointer: str) -> list[str]:
        start = f"{pointer} + atom * {self.columns} * C + c"
        return [f"tl.store({start} + {k} * C, t{k}, mask=exists)" for k in range(self.columns)]


def sum_type(x: Tensor) -> str:
    """Choose the dtype of sums over numbers of ``x``."""
    return "float64" if x.dtype == torch.float64 else "float32"


def per_edge(kernel, n_edges: int, width: int, *tensors: Tensor, **sizes: int) -> None:
    """Launch a kernel for each edge and block of ``width`` channels."""
    _launch(kernel, n_edges, width, EDGE, tensors, sizes)


def per_atom(kernel, n_atoms: int, width: int, *tensors: Tensor, **sizes: int) -> None:
    """Launch a kernel for each atom and block of ``width`` channels."""
    _launch(kernel, n_atoms, width, ATOM, tensors, sizes)


def _launch(kernel, count: int, width: int, how: dict, tensors, sizes) -> None:
    columns = min(triton.next_power_of_2(width), 32 * how["num_warps"])
    if count:
        blocks = count, triton.cdiv(width, columns)
        launch(kernel, blocks, *tensors, **sizes, BN=columns, **how)
