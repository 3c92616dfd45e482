"""Tables of settings in the documentation are those of the schemas.

``python tests/docs/test_tables.py`` writes them anew: each stands between ``<!-- table: SCHEMA -->``,
with the dotted path of its schema, and ``<!-- /table -->``.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1])] if __name__ == "__main__" else []

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.settings import options_table
from helpers.documents import PAGES

TABLE = re.compile(r"<!-- table: ([\w.]+) -->\n(.*?)<!-- /table -->", re.DOTALL)
SCHEMAS = {"DeNSConfig", "MonitorSettings", "StepSettings"}


def generate(marker: re.Match) -> str:
    """Return the text between the markers of a table, markers included."""
    module, name = marker[1].rsplit(".", 1)
    table = options_table(getattr(importlib.import_module(module), name))
    return f"<!-- table: {marker[1]} -->\n\n{table}\n\n<!-- /table -->"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_those_of_the_schemas(page):
    for marker in TABLE.finditer(page.read_text(encoding="utf-8")):
        assert marker[0] == generate(marker), "run: python tests/docs/test_tables.py"


def test_every_schema_has_a_table():
    found = [m[1] for page in PAGES for m in TABLE.finditer(page.read_text(encoding="utf-8"))]
    assert {path.rsplit(".")[-1] for path in found} >= SCHEMAS


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(TABLE.sub(generate, page.read_text(encoding="utf-8")), encoding="utf-8")
