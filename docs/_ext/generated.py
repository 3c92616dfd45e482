"""Sphinx directives that write pages from the code: schemas, the launcher's options, messages."""

from __future__ import annotations

import io
from contextlib import redirect_stdout, suppress
from importlib import import_module
from typing import Any

from docutils import nodes
from error_texts import error_texts
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def load(path: str) -> Any:
    """Import ``module.attribute``."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


class Options(SphinxDirective):
    """Directive that shows a schema as a table: ``{options} dens.relax.config.MoreRedConfig``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        from dens.settings import options_table

        return self.parse_text_to_nodes(options_table(load(self.arguments[0])))


class Keys(SphinxDirective):
    """Directive that lists the keys of a schema without descriptions, by what they must be."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        found: dict[str, list[str]] = {}
        for name, field in load(self.arguments[0]).model_fields.items():
            found.setdefault(field.json_schema_extra["expects"], []).append(f"`{name}`")
        rows = [f"| {expects} | {', '.join(names)} |" for expects, names in found.items()]
        return self.parse_text_to_nodes("\n".join(["| must be | keys |", "|---|---|", *rows]))


class LauncherHelp(SphinxDirective):
    """Directive that shows what ``fairchem --help`` prints with fairchem-core 1.10."""

    def run(self) -> list[nodes.Node]:
        """Return the text."""
        from dens.fairchem1.launch import parse_args

        text = io.StringIO()
        with redirect_stdout(text), suppress(SystemExit):
            parse_args(["--help"])
        return [nodes.literal_block(text.getvalue(), text.getvalue(), language="text")]


class Messages(SphinxDirective):
    """Directive that lists the messages of rooms by module: ``{messages} data relax``."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return a definition list."""
        by_module: dict[str, list[str]] = {}
        for folder in self.arguments[0].split():
            for module, text in error_texts("" if folder == "top" else folder):
                by_module.setdefault(module, []).append(text)
        listing = nodes.definition_list()
        for module, texts in by_module.items():
            items = [
                nodes.list_item("", nodes.paragraph(text=text)) for text in dict.fromkeys(texts)
            ]
            term = nodes.term("", "", nodes.literal(text=module))
            body = nodes.definition("", nodes.bullet_list("", *items))
            listing += nodes.definition_list_item("", term, body)
        return [listing]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("options", Options)
    app.add_directive("keys", Keys)
    app.add_directive("messages", Messages)
    app.add_directive("launcher-help", LauncherHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
