"""Examples in docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest
from helpers.paths import ROOT

PACKAGE = ROOT / "dens"
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0


def test_there_are_examples():
    assert len(MODULES) >= 10
