"""Rules: what a target value must satisfy. Each compiles to a mask that is true where it is broken.

A null satisfies every rule but `required`. `unique` looks at all records of a run together, so it has no
mask here; the validate stage judges it under the target's collation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from pipelines.migration.flaws import instead
from pipelines.migration.transforms import check_argument

_HASHES = {
    "bcrypt": r"^\$2[abxy]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}$",
    "argon2": r"^\$argon2(id|i|d)\$v=[0-9]+\$m=[0-9]+,t=[0-9]+,p=[0-9]+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+$",
}


def _compiles(pattern: str) -> str:
    """The pattern, when Polars' regular expressions (linear time, no look-around) take it."""
    try:
        pl.select(pl.lit("").str.contains(pattern))
    except pl.exceptions.ComputeError:
        raise ValueError(f"{pattern!r} is not a regular expression") from None
    return pattern


class Bounds(BaseModel):
    """Both ends inclusive; None leaves one open."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    min: int | float | None = None
    max: int | float | None = None


@dataclass(frozen=True)
class _Rule:
    argument: TypeAdapter[Any] | None
    broken: Callable[[pl.Expr, Any], pl.Expr]
    message: Callable[[Any], str]


_Length = Annotated[int, Field(ge=1)]
_Pattern = Annotated[str, AfterValidator(_compiles)]

_RULES: dict[str, _Rule] = {
    "required": _Rule(None, lambda value, _: value.is_null(), lambda _: "is missing"),
    "not_empty": _Rule(None, lambda value, _: value.str.len_chars() == 0, lambda _: "is empty"),
    "max_length": _Rule(
        TypeAdapter(_Length),
        lambda value, length: value.str.len_chars() > length,
        lambda length: f"is longer than {length} characters",
    ),
    "pattern": _Rule(
        TypeAdapter(_Pattern),
        lambda value, pattern: ~value.str.contains(pattern),
        lambda _: "is not of the required form",
    ),
    "hash": _Rule(
        TypeAdapter(Literal["bcrypt", "argon2"]),
        lambda value, kind: ~value.str.contains(_HASHES[kind]),
        lambda kind: f"is not a {kind} hash",
    ),
    "in": _Rule(
        TypeAdapter(list[str | int | bool]),
        lambda value, allowed: ~value.is_in(allowed),
        lambda _: "is not one of the allowed values",
    ),
    "range": _Rule(
        TypeAdapter(Bounds),
        lambda value, bounds: _outside(value, bounds),
        lambda bounds: f"is outside {_open(bounds.min)} … {_open(bounds.max)}",
    ),
    "finite": _Rule(None, lambda value, _: ~value.is_finite(), lambda _: "is not a finite number"),
    "no_nul": _Rule(
        None, lambda value, _: value.str.contains("\x00", literal=True), lambda _: "contains a NUL character"
    ),
    "unique": _Rule(None, lambda _, __: pl.lit(value=False), lambda _: "occurs more than once"),
}


def step_schema() -> dict[str, Any]:
    """The JSON Schema of one rule: a name, or a name with its argument."""
    known = {name: rule.argument.json_schema() for name, rule in _RULES.items() if rule.argument}
    bare = [name for name, rule in _RULES.items() if not rule.argument]
    named = {"type": "object", "minProperties": 1, "maxProperties": 1}
    return {"anyOf": [{"enum": bare}, {**named, "properties": known, "additionalProperties": False}]}


def check_rule(name: str, argument: Any) -> Any:
    """The argument, checked. Raises ValueError for an unknown name or a wrong argument."""
    if name not in _RULES:
        raise ValueError(f"unknown rule {name!r}" + instead(name, _RULES))
    return check_argument("rule", name, _RULES[name].argument, argument)


def broken_mask(name: str, argument: Any, value: pl.Expr) -> pl.Expr:
    """True where the value breaks the rule; never null."""
    return _RULES[name].broken(value, argument).fill_null(value=False)


def rule_message(name: str, argument: Any) -> str:
    """What a broken rule says of the column, without the value."""
    return _RULES[name].message(argument)


def _outside(value: pl.Expr, bounds: Bounds) -> pl.Expr:
    mask = pl.lit(value=False)
    if bounds.min is not None:
        mask = mask | (value < bounds.min)
    if bounds.max is not None:
        mask = mask | (value > bounds.max)
    return mask


def _open(bound: float | None) -> str:
    return "any" if bound is None else str(bound)
