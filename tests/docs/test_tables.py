"""Tables of settings in the documentation are those of the schemas.

``python tests/docs/test_tables.py`` writes them again, between ``<!-- table: SCHEMA -->``, where
SCHEMA is a dotted path, and ``<!-- /table -->``.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.settings import options_table

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLE = re.compile(r"<!-- table: ([\w.]+) -->\n(.*?)<!-- /table -->", re.DOTALL)
SCHEMAS = {"DeNSConfig", "MonitorSettings", "StepSettings", "MoreRedConfig", "RelaxSettings"}


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
