"""Messages that the pages on troubleshooting explain are those of the code."""

from __future__ import annotations

import re

import pytest
from error_texts import PACKAGE, error_texts
from helpers.paths import DOCS

FOLDERS = ["", *(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())]
KNOWN = {text for folder in FOLDERS for _, text in error_texts(folder)}
QUOTED = re.compile(r"^`(.+)`\n: ", re.MULTILINE)
PAGES = sorted((DOCS / "troubleshooting").glob("*.md"))


def test_the_code_is_read():
    assert len(KNOWN) > 300
    assert "--submit without SLURM runs one rank, not --num-gpus …" in KNOWN


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_messages_are_those_of_the_code(page):
    assert [
        text for text in QUOTED.findall(page.read_text(encoding="utf-8")) if text not in KNOWN
    ] == []


def test_pages_explain_messages():
    assert sum(len(QUOTED.findall(page.read_text(encoding="utf-8"))) for page in PAGES) > 60
