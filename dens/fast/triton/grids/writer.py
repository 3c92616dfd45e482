r"""Functions on a grid of latitudes and longitudes, as lines of kernels that do not store it.

The matrix of a grid is a product at each latitude b and longitude a,

.. math:: T_{(b, a), (l, m)} = U_{b, (l, m)}\,S_{a, m}, \qquad S_{a, m} = \cos(m a), \sin(m a).

A column (the coefficients of one channel of one edge or atom) therefore takes at each latitude one
product for each coefficient and 2 mmax + 1 for each longitude, instead of one for each coefficient
and grid point; longitudes a and -a share their even and odd parts. That is 3 (lmax 4) to 4.5
(lmax 6) times less arithmetic than the matrix products, few enough for float32 without tensor
cores.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dens.fast.triton.source import compile_kernel, indented, interpreted, total

_TINY = 1e-5  # relative error of a grid's matrix that counts as rounding


class GridWriter:
    """Writer of kernels over the columns of a grid of ``side`` latitudes and longitudes.

    Args:
        orders: m of each row.
        dtype: of sums, float32 or float64.
    """

    def __init__(self, orders: Sequence[int], side: int, dtype: str) -> None:
        self.orders, self.side, self.dtype = list(orders), side, dtype
        largest = max(self.orders)
        self.waves = [0, *(s * m for m in range(1, largest + 1) for s in (1, -1))]

    @property
    def rows(self) -> range:
        """The numbers of the rows."""
        return range(len(self.orders))

    def number(self, value: float) -> str:
        """Write a constant; a bare literal would be rounded to float32."""
        return (
            f"tl.full((), {value!r}, tl.{self.dtype})"
            if self.dtype == "float64"
            else f"({value!r})"
        )

    def sigmoid(self, value: str) -> str:
        """Assign the sigmoid of a value to ``s``."""
        if self.dtype == "float64" or interpreted():
            return f"s = tl.sigmoid({value})"
        # two instructions of the special function unit, some 1e-7 off
        power = f"libdevice.fast_expf(tl.minimum(-{value}, 80.0))"
        return f"s = libdevice.fast_dividef(1.0, 1.0 + {power})"

    def load(self, name: str, place: str) -> str:
        """Load a number of each column."""
        return f"{name} = tl.load({place}, mask=exists, other=0.0).to(tl.{self.dtype})"

    def zeros(self, name: str) -> str:
        """Set a number of each column to zero."""
        return f"{name} = tl.zeros((BN,), dtype=tl.{self.dtype})"

    def columns(self) -> list[str]:
        """Find the columns of a program."""
        return [
            "column = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)",
            "exists = column < n",
            "edge, channel = column // C, column % C",
        ]

    def table(self, name: str) -> list[str]:
        """Load the factors of a matrix at latitude ``b``."""
        return [f"{name}{i} = tl.load({name} + b * {len(self.orders)} + {i})" for i in self.rows]

    def fourier(self, table: str, values: str, name: str) -> list[str]:
        """Compute the Fourier coefficients of a column along a latitude."""
        return [
            f"{name}{wave(m)} = "
            + total(f"{table}{i} * {values}{i}" for i in self.rows if self.orders[i] == m)
            for m in self.waves
        ]

    def longitudes(self, names: str, point: Callable[[int], list[str]], summed: bool) -> list[str]:
        """Visit the points of a latitude, and sum a function over them as Fourier coefficients y.

        Args:
            names: one letter for each function given by Fourier coefficients.
            point: lines for the point of a longitude, from these functions' values there, ``v_``
                before each letter; they assign ``r``, the function to be summed.
        """
        lines = [self.zeros(f"y{wave(m)}") for m in self.waves] if summed else []
        for a in range(self.side // 2 + 1):
            cos, sin = self._waves_at(a)
            alone = a == 0 or 2 * a == self.side  # a and -a are the same
            for n in names:
                even = total([f"{n}c0", *(f"{c} * {n}c{m}" for m, c in cos.items())])
                lines.append(f"{n}_even = {even}")
                if not alone:
                    lines.append(f"{n}_odd = " + total(f"{s} * {n}s{m}" for m, s in sin.items()))
            if alone:
                lines += [*(f"v_{n} = {n}_even" for n in names), *point(a)]
                ends = ["even = r"]
            else:
                lines += [*(f"v_{n} = {n}_even + {n}_odd" for n in names), *point(a)]
                lines += ["plus = r"] * summed
                lines += [f"v_{n} = {n}_even - {n}_odd" for n in names]
                lines += point(self.side - a)
                ends = ["even = plus + r", "odd = plus - r"]
            if summed:
                lines += [*ends, "yc0 += even"]
                lines += [f"yc{m} += {c} * even" for m, c in cos.items()]
                lines += [f"ys{m} += {s} * odd" for m, s in sin.items()] * (not alone)
        return lines

    def _waves_at(self, a: int) -> tuple[dict[int, str], dict[int, str]]:
        orders = range(1, max(self.waves) + 1)
        angle = 2 * math.pi * a / self.side
        cos, sin = ({m: self.number(f(m * angle)) for m in orders} for f in (math.cos, math.sin))
        return cos, sin

    def add(self, table: str, first: int = 0) -> list[str]:
        """Add the sums of a latitude to those of the rows, t."""
        return [f"t{i} += {table}{i} * y{wave(self.orders[i])}" for i in self.rows[first:]]

    def over_latitudes(self, lines: list[str]) -> list[str]:
        """Repeat lines for each latitude ``b``, with sums over all of them in t."""
        zeros = [self.zeros(f"t{i}") for i in self.rows]
        return [*zeros, f"for b in range({self.side}):", *indented(lines)]

    def kernel(self, name: str, arguments: str, lines: list[str]):
        """Compile a kernel over columns."""
        more = "n, C: tl.constexpr, BN: tl.constexpr"
        return compile_kernel(name, f"{arguments}, {more}", [*self.columns(), *lines])


def wave(m: int) -> str:
    """Name the Fourier coefficient of an order."""
    return f"{'s' if m < 0 else 'c'}{abs(m)}"


def slope(value: str) -> str:
    """Write the derivative of SiLU from a value and its sigmoid ``s``."""
    return f"s * (1 + {value} * (1 - s))"


def factors(matrix: Tensor, orders: Sequence[int]) -> Tensor:
    """Find U of a grid's matrix, (points, rows): (side, rows), in the matrix' dtype.

    Args:
        orders: m of each row.

    Raises:
        ValueError: the matrix is no such product.
    """
    side = math.isqrt(len(matrix))
    whole = matrix.detach().double().cpu()
    if side**2 != len(whole) or whole.shape[1] != len(orders):
        raise ValueError(f"no square grid of {len(orders)} rows: {tuple(whole.shape)}")
    angle = 2 * torch.pi * torch.arange(side, dtype=torch.float64) / side
    waves = torch.stack([(m * angle).cos() if m >= 0 else (-m * angle).sin() for m in orders], 1)
    whole = whole.view(side, side, -1)
    u = torch.einsum("bai, ai -> bi", whole, waves) / waves.square().sum(0)
    if (u[:, None] * waves - whole).abs().max() > _TINY * whole.abs().max():
        raise ValueError("the grid is not a product of latitudes and longitudes")
    return u.to(matrix).contiguous()


class _Tables:
    """Factors of the grids' matrices, found once for each pair of matrices."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int, torch.dtype], tuple] = {}

    def __call__(
        self, to_grid: Tensor, from_grid: Tensor, orders: Sequence[int], dtype: torch.dtype
    ) -> list[Tensor]:
        key = id(to_grid), id(from_grid), dtype
        owners, *found = self.known.get(key, (None,))
        if owners is None or owners[0]() is not to_grid or owners[1]() is not from_grid:
            found = [factors(m, orders).to(dtype) for m in (to_grid, from_grid)]
            found[1][:, 0] = 0  # l = 0 is the mean over the sphere, which nothing takes from a grid
            self.known[key] = ((weakref.ref(to_grid), weakref.ref(from_grid)), *found)
        return found


tables = _Tables()
