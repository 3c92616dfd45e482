"""Sphinx extension that writes formulas as MathML, which browsers draw without a script."""

from __future__ import annotations

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging

_LOGGER = logging.getLogger(__name__)
_CONVERTER = LatexToMathML()


def convert(latex: str, display: bool, node: nodes.Node) -> str:
    """Convert a formula; one that cannot be read is a warning, and is shown as it is written."""
    try:
        return _CONVERTER.convert_with_local_state(latex, displaystyle=display)
    except LatexError as error:
        _LOGGER.warning("formula %r: %s", latex, error, location=node)
        return nodes.make_id(latex)


def visit_math(translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(convert(node.astext(), False, node))
    raise nodes.SkipNode


def visit_math_block(translator, node: nodes.math_block) -> None:
    """Write a formula of its own line, which scrolls where the page is narrower."""
    formula = convert(node.astext(), True, node)
    translator.body.append(f'<div class="formula">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
