"""Every script, study and benchmark of the documentation runs, or is checked as far as possible."""

from __future__ import annotations

import pytest
from helpers.command_table import TABLE
from helpers.workplace import check_command


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in TABLE if "python " in c], ids=lambda c: c[:60])
def test_script(workplace, command):
    check_command(workplace, command)
