"""Collect the error messages of dens from its code, with … for what varies."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import dens

PACKAGE = Path(dens.__file__).parent
# what a user reads in one line; other exceptions are faults of the program
_SHOWN = {"ConfigError", "ValueError", "ClickException", "UsageError", "OSError", "_refuse"}
_SHOWN |= {"BadRecord", "ForbiddenClass", "FloatingPointError", "ImportError"}
_LEAST = 12  # letters: what has fewer only passes another message on


def error_texts(folder: str) -> Iterator[tuple[str, str]]:
    """List the module and the text of each message below a folder of the package.

    Args:
        folder: such as ``data/sources``; empty for the files at the top.
    """
    found = sorted((PACKAGE / folder).rglob("*.py")) if folder else sorted(PACKAGE.glob("*.py"))
    for path in found:
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _name(node.func) in _SHOWN and node.args:
                text = " ".join(template(node.args[0]).split())
                if sum(letter.isalpha() for letter in text) >= _LEAST:
                    yield module, text


def _name(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def template(node: ast.expr) -> str:
    """Return the text of an expression, with … for what is not written in it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return "…"
