"""Typed settings: schemas of a config's sections, and one-line errors for the user.

pydantic is imported where a schema is defined or used: ``ConfigError`` alone costs nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

_NUMBER = r"[-+.\d]+(e[-+]?\d+)?"
_NEAR_MISS = 0.8  # similarity from which an unknown key counts as a misspelt known one


class ConfigError(ValueError):
    """A mistake in the settings; the message names the key, what was expected and given."""


def setting(expects: str, description: str, *, default: Any = ..., unit: str = "", **bounds: Any):
    """Define a schema field; ``expects`` is the range in words, for errors and the README."""
    from pydantic import Field

    extra = {"expects": expects, "unit": unit}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def known_keys(schema: type[BaseModel]) -> tuple[str, ...]:
    """List the keys that a schema reads."""
    return tuple(schema.model_fields)


def is_near_miss(name: str, known: Iterable[str]) -> bool:
    """Tell whether an unknown key is so similar to a known one that it must be misspelt."""
    swapped = any(sorted(name) == sorted(key) for key in known)  # short ones, such as scr
    return swapped or bool(difflib.get_close_matches(name, known, n=1, cutoff=_NEAR_MISS))


def unknown_key(name: str, value: Any, where: str, known: Iterable[str]) -> str:
    """Write the error for an unknown key, with the nearest known key or the list of known keys.

    Args:
        where: path of its section in the config; empty at the top level.
    """
    shown = "" if isinstance(value, Mapping | list) else f" = {value!r}"
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "the keys are " + ", ".join(known)
    return f"unknown key {name}{shown} ({where}{'.' * bool(where)}{name}): {hint}"


def parse_settings(
    schema: type[BaseModel], settings: Mapping[str, Any], where: str, *, lenient: bool = False
) -> Any:
    """Check a mapping against a schema whose fields are made by :func:`setting`.

    Args:
        where: path of the mapping in the config; empty at the top level.
        lenient: accept unknown keys, except near misses of known ones.

    Raises:
        ConfigError: one line for each unknown key, missing key, wrong type, value out of range and
            contradiction.
    """
    from pydantic import ValidationError

    known = known_keys(schema)
    settings = {str(key): value for key, value in settings.items()}
    if lenient:
        settings = {k: v for k, v in settings.items() if k in known or is_near_miss(k, known)}
    try:
        return schema.model_validate(settings)
    except ValidationError as error:
        # a union field reports one error for each of its members: one line for each key is enough
        lines = dict.fromkeys(_explain(e, where, schema.model_fields) for e in error.errors())
        raise ConfigError("\n".join(lines)) from None


def _explain(error: Mapping[str, Any], where: str, fields: Mapping[str, Any]) -> str:
    if not error["loc"]:
        return f"{error['ctx']['error']} ({where})"
    name, got = str(error["loc"][0]), error["input"]
    if name not in fields:
        return unknown_key(name, got, where, list(fields))
    expects = fields[name].json_schema_extra["expects"]
    if error["type"] == "missing":
        return f"{name} is missing, it must be {expects} ({where}.{name})"
    hint = ""
    if isinstance(got, str) and re.fullmatch(_NUMBER, got):
        hint = ", a string" + ("; YAML reads 1e-1 as one, write 1.0e-1" if "e" in got else "")
    return f"{name} must be {expects}, got {got!r}{hint} ({where}.{name})"


def options_table(schema: type[BaseModel]) -> str:
    """Format the settings as a Markdown table; a test compares the README's copy with it."""
    rows = ["| key | must be | default | unit | meaning |", "|---|---|---|---|---|"]
    for name, field in schema.model_fields.items():
        extra = field.json_schema_extra
        default = "required" if field.is_required() else _yaml(field.default)
        cells = [f"`{name}`", extra["expects"], default, extra["unit"], field.description]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _yaml(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value))
