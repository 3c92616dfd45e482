"""Fixtures for the tests of the documentation."""

from __future__ import annotations

import pytest
from helpers.workplace import Workplace


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Workplace:
    """Folder of a reader, for the commands of one file."""
    return Workplace(tmp_path_factory.mktemp("clone"))
