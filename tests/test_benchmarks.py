"""Every benchmark is on a page, so that the tests of its commands start it in a fresh process."""

import re

from helpers.documents import PAGES
from helpers.paths import ROOT


def test_every_benchmark_is_documented():
    benchmarks = ROOT / "benchmarks"
    programs = {path.stem for path in benchmarks.glob("*.py") if "__main__" in path.read_text()}
    programs |= {path.parent.name for path in benchmarks.glob("*/__main__.py")}
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert programs == set(re.findall(r"python -m benchmarks\.(\w+)", text))
