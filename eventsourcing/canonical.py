"""Canonical JSON: the one encoding of payloads, metadata and states, in every storage.

Datetimes are RFC 3339 in UTC (a naive one is UTC), UUID and Decimal are strings, bytes are base64.
NaN, infinity, NUL and lone surrogates are refused, for PostgreSQL or a JSON parser somewhere would.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson

from eventsourcing.errors import InvalidEventError

_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
_DEEPEST = 250
"""How far values may be nested; orjson goes to 254."""


def encode(value: Any, *, field: str = "data") -> bytes:
    """Encode a value as canonical JSON, keys in the order given.

    Raises InvalidEventError naming the path of the first value that cannot be encoded.
    """
    try:
        encoded = orjson.dumps(value, default=_encode_other, option=_OPTIONS)
    except (orjson.JSONEncodeError, RecursionError) as error:
        _refuse_unencodable(value, field)
        raise InvalidEventError(str(error.__cause__ or error), field=field) from error
    if b"\\u0000" in encoded or (b"null" in encoded and _has_unwritable_number(value)):
        _refuse_unencodable(value, field)
    return encoded


decode: Callable[[bytes | str], Any] = orjson.loads
"""Decode what `encode` wrote. The library's own function: a layer of ours would cost every row read."""


def comparable(value: Any, *, field: str = "data") -> bytes:
    """Encode with sorted keys: equal bytes mean equal values, whatever the order of keys.

    Raises InvalidEventError like `encode`, of what has no JSON form at all.
    """
    try:
        return orjson.dumps(value, default=_encode_other, option=_OPTIONS | orjson.OPT_SORT_KEYS)
    except (orjson.JSONEncodeError, RecursionError) as error:
        _refuse_unencodable(value, field)
        raise InvalidEventError(str(error.__cause__ or error), field=field) from error


def state_hash(value: Any, *, field: str = "data") -> str:
    """SHA-256 of a value's comparable form, in hexadecimal. Raises what `comparable` raises."""
    return hashlib.sha256(comparable(value, field=field)).hexdigest()


def utc(moment: datetime) -> datetime:
    """The moment in UTC; a naive one is taken as UTC. Raises ValueError outside the years 1 to 9999."""
    if moment.tzinfo is UTC:
        return moment
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the moment lies outside the years 1 to 9999 in UTC") from error


def _encode_other(value: Any) -> Any:
    if isinstance(value, datetime):
        return orjson.Fragment(orjson.dumps(utc(value), option=orjson.OPT_UTC_Z))
    if isinstance(value, date) or (isinstance(value, time) and value.tzinfo is None):
        return value.isoformat()
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise InvalidEventError("NaN and infinity have no JSON form")
        return str(value)
    if isinstance(value, UUID):
        return str(value)  # a driver's subclass; orjson knows only the plain one
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    raise InvalidEventError(f"{type(value).__name__} has no JSON form")


def _has_unwritable_number(value: Any) -> bool:
    """Whether one of the nulls was written for NaN or infinity: most payloads hold honest ones."""
    if isinstance(value, dict):
        return any(_has_unwritable_number(inner) for inner in value.values() if inner is not None)
    if isinstance(value, list | tuple):
        return any(_has_unwritable_number(inner) for inner in value if inner is not None)
    return isinstance(value, float) and not math.isfinite(value)


def _refuse_unencodable(value: Any, path: str, depth: int = 0) -> None:
    """Walk the value and raise for the first part that JSON or PostgreSQL cannot hold."""
    if depth > _DEEPEST:
        raise InvalidEventError(f"nested deeper than {_DEEPEST}", field=path.partition(".")[0])
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InvalidEventError(f"keys must be strings, not {type(key).__name__}", field=path)
            refuse_text(key, path)
            _refuse_unencodable(inner, f"{path}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _refuse_unencodable(inner, f"{path}[{index}]", depth + 1)
    elif isinstance(value, str):
        refuse_text(value, path)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidEventError("NaN and infinity have no JSON form", field=path)
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InvalidEventError("integers beyond 64 bits have no portable JSON form", field=path)


def refuse_text(text: str, path: str) -> None:
    """Raise InvalidEventError for text that PostgreSQL cannot hold: NUL or a lone surrogate."""
    if "\x00" in text:
        raise InvalidEventError("text must not contain NUL", field=path)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidEventError("text must not contain lone surrogates", field=path) from None
