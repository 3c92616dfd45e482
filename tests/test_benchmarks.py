"""Every benchmark starts in a fresh process, in which nothing was imported before."""

import subprocess
import sys

import pytest
from helpers.paths import ROOT

PROGRAMS = [p.stem for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text()]
PROGRAMS += [p.parent.name for p in (ROOT / "benchmarks").glob("*/__main__.py")]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_starts(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
