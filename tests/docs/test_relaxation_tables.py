"""Tables of relaxations in the documentation are those of the stored results.

``PYTHONPATH=. python tests/docs/test_relaxation_tables.py`` writes them again, between
``<!-- relaxation: FILES -->``, a pattern in docs/results/relaxation, and ``<!-- /relaxation -->``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.relax_slabs import format_result
from benchmarks.relaxation.table import format_files

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results" / "relaxation"
PAGES = sorted(DOCS.glob("*.md"))
TABLE = re.compile(r"<!-- relaxation: (\S+) -->\n(.*?)<!-- /relaxation -->", re.DOTALL)


def generate(marker: re.Match) -> str:
    """Return the text between the markers of a table, markers included."""
    paths = sorted(RESULTS.glob(marker[1]))
    if marker[1].startswith("slabs"):
        table = "\n\n".join(format_result(json.loads(path.read_text())) for path in paths)
    else:
        table = format_files(paths)
    return f"<!-- relaxation: {marker[1]} -->\n\n{table}\n\n<!-- /relaxation -->"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_those_of_the_results(page):
    for marker in TABLE.finditer(page.read_text(encoding="utf-8")):
        expected = generate(marker)
        assert marker[0] == expected, (
            "run: PYTHONPATH=. python tests/docs/test_relaxation_tables.py"
        )


def test_every_result_is_shown():
    patterns = [m[1] for page in PAGES for m in TABLE.finditer(page.read_text(encoding="utf-8"))]
    shown = {path for pattern in patterns for path in RESULTS.glob(pattern)}
    assert shown == set(RESULTS.glob("*.json"))


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(TABLE.sub(generate, page.read_text(encoding="utf-8")), encoding="utf-8")
