"""Typed settings: schemas of a config's sections, and the one-line errors they give."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError


class ConfigError(ValueError):
    """A setting the user can mend: the message names the key, what was expected and given."""


def setting(expects: str, description: str, *, default: Any = ..., unit: str = "", **bounds: Any):
    """A schema field; ``expects`` is the range in words, used by the errors and by the README."""
    extra = {"expects": expects, "unit": unit}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def parse_settings(schema: type[BaseModel], settings: Mapping[str, Any], where: str) -> Any:
    """Check a mapping against a schema whose fields are made by :func:`setting`.

    Raises:
        ConfigError: as :func:`parse_config` does.
    """
    try:
        return schema.model_validate(dict(settings))
    except ValidationError as error:
        # a union field reports one error for each of its members: one line for each key is enough
        lines = dict.fromkeys(_explain(e, where, schema.model_fields) for e in error.errors())
        raise ConfigError("\n".join(lines)) from None


def _explain(error: Mapping[str, Any], where: str, fields: Mapping[str, Any]) -> str:
    if not error["loc"]:
        return f"{error['ctx']['error']} ({where})"
    name = str(error["loc"][0])
    if name not in fields:
        close = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {close[0]}?" if close else "the keys are " + ", ".join(fields)
        return f"unknown key {name} = {error['input']!r} ({where}.{name}): {hint}"
    expects = fields[name].json_schema_extra["expects"]
    if error["type"] == "missing":
        return f"{name} is missing, it must be {expects} ({where}.{name})"
    got = error["input"]
    hint = ""
    if isinstance(got, str) and "'" not in expects:
        hint = ", a string" + ("; YAML reads 1e-1 as one, write 1.0e-1" if "e" in got else "")
    return f"{name} must be {expects}, got {got!r}{hint} ({where}.{name})"


def options_table(schema: type[BaseModel]) -> str:
    """The settings as a Markdown table; the README's copy of it is checked by a test."""
    rows = ["| key | must be | default | unit | meaning |", "|---|---|---|---|---|"]
    for name, field in schema.model_fields.items():
        extra = field.json_schema_extra
        default = "required" if field.is_required() else _yaml(field.default)
        cells = [f"`{name}`", extra["expects"], default, extra["unit"], field.description]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _yaml(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value))
