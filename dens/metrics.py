"""Metrics as sums and weights that add up over batches and ranks."""

from __future__ import annotations

from typing import NamedTuple


class Ratio(NamedTuple):
    """A mean in the making: ``total / count``, once there is something to count."""

    total: float
    count: int


def sigma_label(sigma: float) -> str:
    """The label of a noise level: two decimals, more where they are needed.

    >>> sigma_label(0.1), sigma_label(0.025)
    ('sigma=0.10', 'sigma=0.025')
    """
    text = f"{sigma:.4g}"
    return "sigma=" + max(text, f"{sigma:.2f}", key=len)
