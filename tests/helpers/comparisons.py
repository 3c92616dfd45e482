"""Comparison of logged metrics by the scale of their terms."""

import re

import pytest

# Means of terms of either sign and of about 1. One that comes out near zero has the rounding of its
# terms, which is no small part of it.
SIGNED = re.compile("cosine|explained_variance")


def approximately(metrics: dict, rel: float) -> dict:
    """Return what metrics are compared with: each within ``rel`` of itself, signed ones of 1."""
    return {
        name: pytest.approx(value, rel=rel, abs=rel if SIGNED.search(name) else None)
        for name, value in metrics.items()
    }
