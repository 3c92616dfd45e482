"""Every script, study and benchmark of the documentation runs, or is checked as far as possible."""

from __future__ import annotations

import pytest
from helpers.command_table import TABLE
from helpers.workplace import Workplace, check_command


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("clone"))


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in TABLE if "python " in c], ids=lambda c: c[:60])
def test_script(workplace, command):
    check_command(workplace, command)
