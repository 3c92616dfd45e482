"""Paths of this checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
CONFIGS = ROOT / "configs"
DOCS = ROOT / "docs"
README = ROOT / "README.md"
