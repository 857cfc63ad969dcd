"""Transforms: what a mapping may do to values, compiled to Polars expressions.

A transform takes expressions and returns one. Beside the value it may name the rows that it could not
bring over (`failed`), which are quarantined, and the format pair that it converted, which is counted.
Functions that teams register take part under their own names, vectorised like the built-in ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


@dataclass(frozen=True)
class Conversion:
    """A counted change of format: of `uuid` or `datetime`, from one form to another."""

    kind: Literal["uuid", "datetime"]
    source_format: str
    target_format: str


@dataclass(frozen=True)
class Settings:
    """What a registered function may know: the mapping's params, and the run's one `now` (UTC)."""

    params: Mapping[str, Any]
    now: datetime


@dataclass(frozen=True)
class Value:
    """A value under transformation. `failed` is true where it could not be brought over."""

    expr: pl.Expr
    failed: pl.Expr | None = None
    message: str = ""
    conversion: Conversion | None = None


Function = Callable[[Sequence[pl.Expr], Settings], pl.Expr]
ChildFunction = Callable[[pl.DataFrame, Settings], pl.DataFrame]


class _Formats(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class _UuidFormats(_Formats):
    source: Literal["hex32", "dashed", "urn"] = Field(alias="from")
    target: Literal["hex32", "dashed", "urn"] = Field(alias="to")


class _DatetimeFormats(_Formats):
    source: Literal["naive_utc", "timestamptz", "unix_s", "unix_ms", "iso"] = Field(alias="from")
    target: Literal["naive_utc", "timestamptz", "unix_s", "unix_ms", "iso"] = Field(alias="to")


_DTYPES: dict[str, pl.DataType] = {
    "integer": pl.Int64(),
    "float": pl.Float64(),
    "text": pl.String(),
    "boolean": pl.Boolean(),
}
_UUID_FORMS = {
    "hex32": r"^[0-9a-fA-F]{32}$",
    "dashed": r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    "urn": r"^(?i:urn:uuid:)[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
}
_ISO = "%Y-%m-%dT%H:%M:%S%.f%:z"


def _const(_: pl.Expr, argument: Any) -> Value:
    return Value(pl.lit(argument))


def _copy(value: pl.Expr, _: Any) -> Value:
    return Value(value)


def _lower(value: pl.Expr, _: Any) -> Value:
    return Value(value.str.to_lowercase())


def _strip(value: pl.Expr, _: Any) -> Value:
    return Value(value.str.strip_chars())


def _default(value: pl.Expr, argument: Any) -> Value:
    return Value(value.fill_null(argument))


def _cast(value: pl.Expr, argument: str) -> Value:
    result = value.cast(_DTYPES[argument], strict=False)
    return Value(result, _lost(value, result), f"cannot become {argument}")


def _map(value: pl.Expr, argument: dict[str, Any]) -> Value:
    result = value.cast(pl.String).replace_strict(argument, default=None)
    return Value(result, _lost(value, result), "is not one of the values that the mapping lists")


def _uuid(value: pl.Expr, formats: _UuidFormats) -> Value:
    right_form = value.str.contains(_UUID_FORMS[formats.source])
    digits = value.str.to_lowercase().str.replace("urn:uuid:", "", literal=True).str.replace_all("-", "")
    cuts = [(0, 8), (8, 4), (12, 4), (16, 4), (20, 12)]
    dashed = pl.concat_str([digits.str.slice(start, size) for start, size in cuts], separator="-")
    forms = {"hex32": digits, "dashed": dashed, "urn": pl.concat_str([pl.lit("urn:uuid:"), dashed])}
    result = pl.when(right_form).then(forms[formats.target])
    message = f"is not a UUID written as {formats.source}"
    return Value(result, _lost(value, result), message, Conversion("uuid", formats.source, formats.target))


def _datetime(value: pl.Expr, formats: _DatetimeFormats) -> Value:
    moment = _MOMENT_OF[formats.source](value)
    result = _MOMENT_TO[formats.target](moment)
    message = f"is not a moment written as {formats.source}"
    pair = Conversion("datetime", formats.source, formats.target)
    return Value(result, _lost(value, result), message, pair)


def _iso_moment(value: pl.Expr) -> pl.Expr:
    with_offset = value.str.replace(r"[Zz]$", "+00:00").str.replace(" ", "T", literal=True)
    return with_offset.str.to_datetime(_ISO, strict=False, time_unit="us").dt.convert_time_zone("UTC")


def _epoch(value: pl.Expr, per_second: int) -> pl.Expr:
    microseconds = value.cast(pl.Int64, strict=False) * (1_000_000 // per_second)
    in_calendar = value.abs() < 253_402_300_800 * per_second  # the year 10000 and beyond has no calendar form
    moment = microseconds.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.when(in_calendar).then(moment)


_MOMENT_OF: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "naive_utc": lambda value: value.dt.replace_time_zone("UTC"),
    "timestamptz": lambda value: value,
    "unix_s": lambda value: _epoch(value, 1),
    "unix_ms": lambda value: _epoch(value, 1000),
    "iso": _iso_moment,
}
_MOMENT_TO: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "naive_utc": lambda moment: moment.dt.replace_time_zone(None),
    "timestamptz": lambda moment: moment,
    "unix_s": lambda moment: moment.dt.epoch("s"),
    "unix_ms": lambda moment: moment.dt.epoch("ms"),
    "iso": lambda moment: moment.dt.to_string("%Y-%m-%dT%H:%M:%S%.6fZ"),
}


def _lost(before: pl.Expr, after: pl.Expr) -> pl.Expr:
    return before.is_not_null() & after.is_null()


@dataclass(frozen=True)
class _Builtin:
    """A built-in transform: what its argument must be, and how it compiles. None: it takes no argument."""

    argument: TypeAdapter[Any] | None
    build: Callable[[pl.Expr, Any], Value]


_BUILTINS: dict[str, _Builtin] = {
    "copy": _Builtin(None, _copy),
    "const": _Builtin(TypeAdapter(str | int | float | bool | None), _const),
    "default": _Builtin(TypeAdapter(str | int | float | bool), _default),
    "lower": _Builtin(None, _lower),
    "strip": _Builtin(None, _strip),
    "cast": _Builtin(TypeAdapter(Literal["integer", "float", "text", "boolean"]), _cast),
    "map": _Builtin(TypeAdapter(dict[str, str | int | float | bool]), _map),
    "uuid": _Builtin(TypeAdapter(_UuidFormats), _uuid),
    "datetime": _Builtin(TypeAdapter(_DatetimeFormats), _datetime),
}
_functions: dict[str, Function] = {}
_child_functions: dict[str, tuple[ChildFunction, tuple[Conversion, ...]]] = {}


def register_function(name: str) -> Callable[[Function], Function]:
    """Make a function a transform of this name: `(inputs, settings) -> expression`, pure and vectorised."""

    def register(function: Function) -> Function:
        _functions[name] = function
        return function

    return register


def register_child_function(
    name: str, *, conversions: tuple[Conversion, ...] = ()
) -> Callable[[ChildFunction], ChildFunction]:
    """Make a function the maker of children: it gets the record's source columns and `_record`, and
    returns the children's columns and, for each child, the `_record` it belongs to. `conversions`
    are counted once a record that has children."""

    def register(function: ChildFunction) -> ChildFunction:
        _child_functions[name] = (function, conversions)
        return function

    return register


def check_transform(name: str, argument: Any) -> Any:
    """The argument, checked. Raises ValueError for an unknown name or a wrong argument."""
    if name in _functions:
        if argument is not None:
            raise ValueError(f"the function {name!r} takes no argument")
        return None
    if name not in _BUILTINS:
        known = ", ".join(sorted({*_BUILTINS, *_functions}))
        raise ValueError(f"unknown transform {name!r}; known are {known}")
    return check_argument("transform", name, _BUILTINS[name].argument, argument)


def check_argument(what: str, name: str, form: TypeAdapter[Any] | None, argument: Any) -> Any:
    """The argument of a named transform or rule in its declared form; raises ValueError in one line."""
    if form is None:
        if argument is not None:
            raise ValueError(f"the {what} {name!r} takes no argument")
        return None
    try:
        return form.validate_python(argument)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
        raise ValueError(f"{what} {name!r}: {path + ': ' if path else ''}{first['msg'].lower()}") from None


def check_child_transform(name: str) -> str:
    """The name, when a function that makes children is registered under it; else ValueError."""
    if name not in _child_functions:
        raise ValueError(f"unknown child transform {name!r}; known are {', '.join(sorted(_child_functions))}")
    return name


def child_function(name: str) -> tuple[ChildFunction, tuple[Conversion, ...]]:
    """The function that makes these children, and the conversions it stands for."""
    return _child_functions[name]


def apply_transform(name: str, argument: Any, inputs: Sequence[pl.Expr], settings: Settings) -> Value:
    """Compile one checked transform over its inputs; a built-in one takes the first."""
    if name in _functions:
        return Value(_functions[name](inputs, settings))
    first = inputs[0] if inputs else pl.lit(None)
    return _BUILTINS[name].build(first, argument)
