"""Errors of the restricted readers, and the switch that trusts all files."""

from __future__ import annotations

import os
import re

TRUST = "DENS_TRUST_FILES"


class BadRecord(ValueError):
    """Error for a record that cannot be read or lacks a field; the message names the fault."""


class ForbiddenClass(BadRecord):
    """Error for a pickle that asks for a class or function off the allow-list; it was not run."""

    def __init__(self, name: str, reader: str = "such data do") -> None:
        super().__init__(
            f"asks for {name}, which {reader} not need; none of its code was run. "
            f"If you trust where it comes from: {TRUST}=1"
        )


def name_refused_by_torch(message: str) -> str | None:
    """Find the refused class in an error message of PyTorch's restricted reader (since 2.4)."""
    found = re.search(r"GLOBAL (\S+)", message) or re.search(
        r"(?:unsupported class|unrecognized function|objects, but got) (.+)", message
    )
    return found and found.group(1)


def trusted() -> bool:
    """Tell whether the user trusts all files."""
    return os.environ.get(TRUST) == "1"
