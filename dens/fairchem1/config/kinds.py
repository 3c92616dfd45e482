"""Make schemas from the names of keys and the kinds of their values: counts, numbers > 0, ..."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from dens.settings import setting


class Section(BaseModel):
    """Schema of a section, without keys."""

    model_config = ConfigDict(
        extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )


# Kinds of values: their type, the type in words, and bounds. Kinds with the word
# "optional" may be null.
_Positive = Annotated[float, Field(gt=0)]
_Number = float | int | list | None  # a list has a number for each group of parameters
_KINDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "others": (Any, "anything", {}),
    "numbers": (_Number, "a number, or null", {}),
    "sequences": (list[float] | tuple | None, "a list of numbers, or null", {}),
    "positive": (float, "a number > 0", {"gt": 0}),
    "not_negative": (float, "a number >= 0", {"ge": 0}),
    "optional_positive": (float | None, "a number > 0, or null", {"gt": 0}),
    "counts": (int, "an integer >= 1", {"ge": 1}),
    "optional_counts": (int | None, "an integer >= 1, or null", {"ge": 1}),
    "indices": (int, "an integer >= 0", {"ge": 0}),
    "orders": (
        list[Annotated[int, Field(ge=0, le=11)]] | None,
        "a list of integers from 0 to 11, or null",
        {"min_length": 1},
    ),
    "degrees": (
        list[Annotated[int, Field(ge=1, le=11)]] | None,  # as Wigner matrices of fairchem
        "a list of integers from 1 to 11, or null",
        {"min_length": 1},
    ),
    "intervals": (
        Literal[-1] | Annotated[int, Field(ge=1)],
        "an integer >= 1, or -1 for the end of each epoch",
        {},
    ),
    "decays": (float | None, "a number in (0, 1), or null", {"gt": 0, "lt": 1}),
    "rates": (float, "a number in [0, 1)", {"ge": 0, "lt": 1}),
    "switches": (bool, "true or false", {}),
    "scales": (float | list[float] | None, "a number, or a list of numbers", {}),
    "spreads": (_Positive | list[_Positive] | None, "a number > 0, or a list of such", {}),
    "levels": (Literal["atom", "system"], "'atom' or 'system'", {}),
    "reductions": (Literal["mean", "sum"] | None, "'mean', 'sum' or null", {}),
    "balancings": (Literal["atoms", False, None], "'atoms', false or null", {}),
}


def make_schema(
    others: str = "", numbers: str = "", bases: tuple[type[BaseModel], ...] = (), **kinds: str
) -> type[BaseModel]:
    """Make the schema of a section from the names of its keys, separated by spaces.

    Args:
        others: keys whose values may be anything.
        numbers: keys whose values must be numbers.
        bases: schemas whose keys belong to the section too.
        kinds: keys of further kinds, by the name of the kind.
    """
    fields = {}
    for kind, names in {"others": others, "numbers": numbers, **kinds}.items():
        annotation, expects, bounds = _KINDS[kind]
        for name in names.split():
            fields[name] = (annotation, setting(expects, "", default=None, **bounds))
    return create_model("Settings", __base__=(*bases, Section), **fields)


@cache
def signature_schema(
    function: Callable[..., Any], *, more: str = "", without: str = "", **kinds: str
) -> type[BaseModel]:
    """Make the schema of a section that is passed on to a function as keyword arguments.

    Args:
        function: its arguments that default to a number, or to several, must be such.
        more: further keys.
        without: arguments that the caller gives itself.
        kinds: keys of further kinds, by the name of the kind.
    """
    found = inspect.signature(function).parameters.values()
    given = {name for names in kinds.values() for name in names.split()}
    without = {*without.split(), *given}
    found = [p for p in found if p.name not in without and p.kind != p.VAR_KEYWORD]
    names = {"others": [more]} | {kind: [listed] for kind, listed in kinds.items()}
    for parameter in found:
        names.setdefault(kind_of(parameter.default), []).append(parameter.name)
    return make_schema(**{kind: " ".join(listed) for kind, listed in names.items()})


def kind_of(default: Any) -> str:
    """Name the kind of an argument, judged by its default."""
    if isinstance(default, tuple) and all(type(value) in (int, float) for value in default):
        return "sequences" if default else "others"
    return "numbers" if type(default) in (int, float) else "others"
