"""README and documentation pages: their code blocks and commands."""

from __future__ import annotations

import re

from helpers.paths import DOCS, README

# The site includes some of them in others; docs/tutorials and docs/_build are written by its build.
_BUILT = ("_build", "tutorials")
PAGES = [
    README,
    *(p for p in sorted(DOCS.rglob("*.md")) if p.relative_to(DOCS).parts[0] not in _BUILT),
]
_INDENTED = r"^    ((?:\w+=\S+ )*(?:dens|fairchem|python|pip|make)\b.*(?:\\\n.*)*)$"


def code_blocks(text: str, language: str) -> list[str]:
    """Return the fenced code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    """Return the commands of a page: lines of ``sh`` blocks, and indented command lines.

    Comments are removed and continued lines are joined.
    """
    parts = [*code_blocks(text, "sh"), *re.findall(_INDENTED, text, re.MULTILINE)]
    lines = "\n".join(parts).replace("\\\n", "").splitlines()
    lines = [" ".join(line.split("#")[0].split()) for line in lines]
    return [line for line in lines if line]


def apply_diff(diff: str, text: str) -> str:
    """Apply a diff without line numbers: each line is looked for after the one before.

    Raises:
        ValueError: ``text`` lacks a line of the diff.
    """
    lines, place = text.splitlines(), 0
    for line in diff.splitlines():
        sign, content = line[0], line[1:]
        if sign == "+":
            lines.insert(place, content)
            place += 1
            continue
        place = lines.index(content, place)
        if sign == "-":
            del lines[place]
        else:
            place += 1
    return "\n".join(lines) + "\n"
