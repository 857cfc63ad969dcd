"""Transforms: what a mapping may do to values, compiled to Polars expressions.

A transform takes expressions and returns one. Beside the value it may name the rows that it could not
bring over (`failed`), which are quarantined, and the format pair that it converted, which is counted.
Functions that teams register take part under their own names, vectorised like the built-in ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipelines.migration.flaws import instead
from pipelines.migration.formats import (
    DatetimeFormats,
    UuidFormats,
    convert_datetime,
    convert_uuid,
    described,
)


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


class _JsonPath(BaseModel):
    """`get: $.address.city` takes one value out of the document."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    get: Annotated[str, Field(pattern=r"^\$[.\[]")]


_DTYPES: dict[str, pl.DataType] = {
    "integer": pl.Int64(),
    "float": pl.Float64(),
    "text": pl.String(),
    "boolean": pl.Boolean(),
}
_TRUTH = {"true": True, "t": True, "yes": True, "1": True, "1.0": True}
_TRUTH |= {"false": False, "f": False, "no": False, "0": False, "0.0": False}


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
    match argument:
        case "boolean":
            words = value.cast(pl.String).str.to_lowercase()
            result = words.replace_strict(_TRUTH, default=None, return_dtype=pl.Boolean())
        case "decimal":
            text = value.cast(pl.String).str.strip_chars()
            result = pl.when(text.str.contains(r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)$")).then(text)
        case "date":
            result = value.cast(pl.String).str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False)
        case _:
            result = value.cast(_DTYPES[argument], strict=False)
    return Value(result, _lost(value, result), f"cannot become {argument}")


def _map(value: pl.Expr, argument: dict[str, Any]) -> Value:
    result = value.cast(pl.String).replace_strict(argument, default=None)
    return Value(result, _lost(value, result), "is not one of the values that the mapping lists")


def _uuid(value: pl.Expr, formats: UuidFormats) -> Value:
    result, names = convert_uuid(value, formats), described(formats)
    return Value(
        result, _lost(value, result), f"is not a UUID written as {names[0]}", Conversion("uuid", *names)
    )


def _datetime(value: pl.Expr, formats: DatetimeFormats) -> Value:
    result, names = convert_datetime(value, formats), described(formats)
    pair = Conversion("datetime", *names)
    return Value(result, _lost(value, result), f"is not a moment written as {names[0]}", pair)


def _json_parse(value: pl.Expr, argument: _JsonPath | None) -> Value:
    """The text as compact JSON, or one text or number out of it."""
    document = value.map_batches(_compact_json, return_dtype=pl.String)
    lost, message = _lost(value, document), "is not JSON"
    return Value(document if argument is None else document.str.json_path_match(argument.get), lost, message)


def _compact_json(texts: pl.Series) -> pl.Series:
    def compact(text: str | None) -> str | None:
        try:
            return None if text is None else orjson.dumps(orjson.loads(text)).decode()
        except orjson.JSONDecodeError:
            return None

    return pl.Series(texts.name, [compact(text) for text in texts], dtype=pl.String)


def _json_dump(value: pl.Expr, _: Any) -> Value:
    """A text, number or truth value as JSON; null stays null."""
    encoded = pl.struct(value.alias("v")).struct.json_encode()
    return Value(pl.when(value.is_not_null()).then(encoded.str.slice(5).str.head(-1)))


def _lost(before: pl.Expr, after: pl.Expr) -> pl.Expr:
    return before.is_not_null() & after.is_null()


@dataclass(frozen=True)
class _Builtin:
    """A built-in transform: what its argument must be, and how it compiles. None: it takes no argument."""

    argument: TypeAdapter[Any] | None
    build: Callable[[pl.Expr, Any], Value]


_BUILTINS: dict[str, _Builtin] = {
    "copy": _Builtin(None, _copy),
    "rename": _Builtin(None, _copy),
    "const": _Builtin(TypeAdapter(str | int | float | bool | None), _const),
    "default": _Builtin(TypeAdapter(str | int | float | bool), _default),
    "lower": _Builtin(None, _lower),
    "strip": _Builtin(None, _strip),
    "cast": _Builtin(TypeAdapter(Literal["integer", "float", "text", "boolean", "decimal", "date"]), _cast),
    "map": _Builtin(TypeAdapter(dict[str, str | int | float | bool]), _map),
    "uuid": _Builtin(TypeAdapter(UuidFormats), _uuid),
    "datetime": _Builtin(TypeAdapter(DatetimeFormats), _datetime),
    "json_parse": _Builtin(TypeAdapter(_JsonPath | None), _json_parse),
    "json_dump": _Builtin(None, _json_dump),
}
_functions: dict[str, Function] = {}
_child_functions: dict[str, tuple[ChildFunction, tuple[Conversion, ...]]] = {}
_needed: dict[str, tuple[str, ...]] = {}


def register_function(name: str, *, params: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Make a function a transform of this name: `(inputs, settings) -> expression`, pure and vectorised.

    A mapping that uses it must state these params: there is no default that nobody chose.
    """

    def register(function: Function) -> Function:
        _functions[name], _needed[name] = function, params
        return function

    return register


def register_child_function(
    name: str, *, conversions: tuple[Conversion, ...] = (), params: tuple[str, ...] = ()
) -> Callable[[ChildFunction], ChildFunction]:
    """Make a function the maker of children: it gets the record's source columns and `_record`, and
    returns the children's columns and, for each child, the `_record` it belongs to. `conversions`
    are counted once a record that has children. `params`: see `register_function`."""

    def register(function: ChildFunction) -> ChildFunction:
        _child_functions[name], _needed[name] = (function, conversions), params
        return function

    return register


def needed_params(name: str) -> tuple[str, ...]:
    """The params that a mapping must state to use a function."""
    return _needed.get(name, ())


def step_schema() -> dict[str, Any]:
    """The JSON Schema of one transform: a name, or one built-in name with its argument."""
    known = {name: _inline(builtin.argument) for name, builtin in _BUILTINS.items() if builtin.argument}
    named = {"type": "object", "minProperties": 1, "maxProperties": 1}
    return {"anyOf": [{"type": "string"}, {**named, "properties": known, "additionalProperties": False}]}


def _inline(argument: TypeAdapter[Any]) -> dict[str, Any]:
    """A schema without references: an argument has at most one model."""
    schema = argument.json_schema()
    return next(iter(schema["$defs"].values())) if "$defs" in schema else schema


def check_transform(name: str, argument: Any) -> Any:
    """The argument, checked. Raises ValueError for an unknown name or a wrong argument."""
    if name in _functions:
        if argument is not None:
            raise ValueError(f"the function {name!r} takes no argument")
        return None
    if name not in _BUILTINS:
        raise ValueError(f"unknown transform {name!r}" + instead(name, {*_BUILTINS, *_functions}))
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
        found = error.errors(include_url=False, include_input=False)
        raise ValueError(f"{what} {name!r}: {', and '.join(map(_said, found))}") from None


def _said(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"] if "[" not in str(part))
    return (f"{path}: " if path else "") + str(error["msg"]).removeprefix("Value error, ").lower()


def check_child_transform(name: str) -> str:
    """The name, when a function that makes children is registered under it; else ValueError."""
    if name not in _child_functions:
        raise ValueError(f"unknown child transform {name!r}" + instead(name, _child_functions))
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
