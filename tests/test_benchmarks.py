"""Every benchmark starts in a fresh process, in which nothing was imported before.

Those that a page has are started by the tests of its commands.
"""

import re
import subprocess
import sys

import pytest
from helpers.documents import PAGES
from helpers.paths import ROOT

PROGRAMS = {p.stem for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text()}
PROGRAMS |= {p.parent.name for p in (ROOT / "benchmarks").glob("*/__main__.py")}
DOCUMENTED = {
    name for page in PAGES for name in re.findall(r"python -m benchmarks\.(\w+)", page.read_text())
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PROGRAMS - DOCUMENTED))
def test_starts(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
