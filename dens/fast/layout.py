"""Order-major layout: the positions of coefficients in the features of edges."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class OrderMajor:
    """Coefficients (l, m) with l <= lmax and abs(m) <= mmax, sorted by order, then sign, then l."""

    lmax: int
    mmax: int

    @property
    def degrees(self) -> list[int]:
        """Number of degrees of each order m: lmax - m + 1."""
        return [self.lmax - m + 1 for m in range(self.mmax + 1)]

    @property
    def sizes(self) -> list[int]:
        """Rows of each order: both signs for m > 0."""
        return [count * (1 if m == 0 else 2) for m, count in enumerate(self.degrees)]

    @property
    def coefficients(self) -> list[tuple[int, int]]:
        """The degree and order (l, m) of each row."""
        rows = []
        for m in range(self.mmax + 1):
            for sign in (1, -1) if m else (1,):
                rows += [(degree, sign * m) for degree in range(m, self.lmax + 1)]
        return rows

    @property
    def rows(self) -> list[int]:
        """The degree-major row of each coefficient among all (lmax + 1)^2."""
        return [degree * (degree + 1) + m for degree, m in self.coefficients]

    @property
    def reduced_rows(self) -> list[int]:
        """The degree-major row of each coefficient among all with abs(m) <= mmax."""
        by_degree = sorted(self.coefficients)
        return [by_degree.index(coefficient) for coefficient in self.coefficients]

    @property
    def rescale(self) -> list[float]:
        """Factor of each row to compensate the orders beyond mmax: sqrt((2l+1)/(2 mmax+1))."""
        return [
            math.sqrt((2 * degree + 1) / (2 * self.mmax + 1)) if degree > self.mmax else 1.0
            for degree, _ in self.coefficients
        ]

    @property
    def degrees_by_order(self) -> tuple[tuple[int, ...], ...]:
        """The degrees of the rows of each order."""
        return tuple(tuple(range(m, self.lmax + 1)) * (2 if m else 1) for m in range(self.mmax + 1))

    def rows_of_degree(self, degree: int) -> list[int]:
        """Return the rows of one degree."""
        return [row for row, (l_row, _) in enumerate(self.coefficients) if l_row == degree]
