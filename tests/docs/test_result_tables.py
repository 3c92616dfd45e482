"""Tables of measurements in the documentation are those of the stored results.

``PYTHONPATH=. python tests/docs/test_result_tables.py`` writes them again, between
``<!-- KIND: FILES -->``, a pattern in docs/results/KIND, and ``<!-- /KIND -->``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import format_result as format_gpu
from benchmarks.relax_oc20 import format_result as format_oc20
from benchmarks.relax_slabs import format_result as format_slabs
from benchmarks.relaxation.table import format_files

DOCS = Path(__file__).parents[2] / "docs"
KINDS = ("gpu", "relaxation")
# of one stored result each, by the beginning of its file's name; all others are one table together
FORMATS = {"slabs": format_slabs, "oc20": format_oc20}
PAGES = sorted(DOCS.glob("*.md"))
TABLE = re.compile(rf"<!-- ({'|'.join(KINDS)}): (\S+) -->\n(.*?)<!-- /\1 -->", re.DOTALL)


def generate(marker: re.Match) -> str:
    """Return the text between the markers of a table, markers included."""
    kind, pattern = marker[1], marker[2]
    paths = sorted((DOCS / "results" / kind).glob(pattern))
    of_file = FORMATS.get(re.split(r"[_.]", pattern)[0])
    formatted = format_gpu if kind == "gpu" else of_file
    if formatted is None:
        table = format_files(paths)
    else:
        table = "\n\n".join(formatted(json.loads(path.read_text())) for path in paths)
    return f"<!-- {kind}: {pattern} -->\n\n{table}\n\n<!-- /{kind} -->"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_those_of_the_results(page):
    for marker in TABLE.finditer(page.read_text(encoding="utf-8")):
        expected = generate(marker)
        assert marker[0] == expected, "run: PYTHONPATH=. python tests/docs/test_result_tables.py"


@pytest.mark.parametrize("kind", KINDS)
def test_every_result_is_shown(kind):
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    patterns = [m[2] for text in texts for m in TABLE.finditer(text) if m[1] == kind]
    folder = DOCS / "results" / kind
    shown = {path for pattern in patterns for path in folder.glob(pattern)}
    assert shown == set(folder.glob("*.json"))


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(TABLE.sub(generate, page.read_text(encoding="utf-8")), encoding="utf-8")
