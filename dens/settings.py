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

_NUMBER = re.compile(r"([-+]?\d*\.?\d+|[-+]?\d+\.)(e([-+]?)(\d+))?", re.IGNORECASE)
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


def closest(name: str, known: Iterable[str]) -> str | None:
    """Find the known name that is most similar to another one, whatever its case; None if far."""
    by_case = {key.casefold(): key for key in known}
    found = difflib.get_close_matches(name.casefold(), by_case, n=1)
    return by_case[found[0]] if found else None


def unknown_value(value: Any, where: str, known: Iterable[str], more: str = "") -> str:
    """Write the error for a name that is not one of the known names, with the nearest of them.

    Args:
        where: path of the key in the config, for which ``value`` is given.
        more: what else the value may be, in words, such as ``", or null"``.
    """
    known = list(known)
    close = closest(value, known) if isinstance(value, str) else None
    hint = f": did you mean {close}?" if close else ""
    name = where.rpartition(".")[2]
    return f"{name} must be one of {', '.join(known)}{more}, got {value!r}{hint} ({where})"


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
        found = {e["loc"][:1]: e for e in reversed(error.errors())}
        lines = [_explain(e, where, schema.model_fields) for e in reversed(found.values())]
        raise ConfigError("\n".join(lines)) from None


def _explain(error: Mapping[str, Any], where: str, fields: Mapping[str, Any]) -> str:
    if not error["loc"]:
        return f"{error['ctx']['error']} ({where})"
    name, got = str(error["loc"][0]), error["input"]
    if name not in fields:
        return unknown_key(name, got, where, list(fields))
    expects, dot = fields[name].json_schema_extra["expects"], "." * bool(where)
    if error["type"] == "missing":
        return f"{name} is missing, it must be {expects} ({where}{dot}{name})"
    return f"{name} must be {expects}, got {got!r}{_as_string(got)} ({where}{dot}{name})"


def _as_string(got: Any) -> str:
    """Explain a number that YAML reads as a string: an exponent without point and sign."""
    found = _NUMBER.fullmatch(got) if isinstance(got, str) else None
    if found is None:
        return ""
    if found[2] is None:
        return ", a string"
    point = "" if "." in found[1] else ".0"
    number = f"{found[1]}{point}e{found[3] or '+'}{found[4]}"
    return f", a string; YAML reads {got} as one, write {number}"


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
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
