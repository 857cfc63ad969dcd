"""Canonical JSON: the one encoding of payloads, metadata and states, in every storage.

Datetimes are RFC 3339 in UTC (a naive one is UTC), UUID and Decimal are strings, bytes are base64.
NaN, infinity, NUL and lone surrogates are refused, for PostgreSQL or a JSON parser somewhere would.
"""

from __future__ import annotations

import base64
import hashlib
import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson

from eventsourcing.errors import InvalidEventError

_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC


def encode(value: Any, *, field: str = "data") -> bytes:
    """Encode a value as canonical JSON, keys in the order given.

    Raises InvalidEventError naming the path of the first value that cannot be encoded.
    """
    try:
        encoded = orjson.dumps(value, default=_encode_other, option=_OPTIONS)
    except (orjson.JSONEncodeError, RecursionError) as error:
        _refuse_unencodable(value, field)
        raise InvalidEventError(str(error.__cause__ or error), field=field) from error
    if b"null" in encoded or b"\\u0000" in encoded:
        _refuse_unencodable(value, field)
    return encoded


def decode(encoded: bytes | str) -> Any:
    """Decode what `encode` wrote."""
    return orjson.loads(encoded)


def comparable(value: Any) -> bytes:
    """Encode with sorted keys: equal bytes mean equal values, whatever the order of keys."""
    return orjson.dumps(value, default=_encode_other, option=_OPTIONS | orjson.OPT_SORT_KEYS)


def state_hash(value: Any) -> str:
    """SHA-256 of a value's comparable form, in hexadecimal."""
    return hashlib.sha256(comparable(value)).hexdigest()


def utc(moment: datetime) -> datetime:
    """The moment in UTC; a naive one is taken as UTC. Raises ValueError for one outside years 1 to 9999."""
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside the years 1 to 9999 in UTC") from None


def _encode_other(value: Any) -> Any:
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise InvalidEventError("NaN and infinity have no JSON form")
        return str(value)
    if isinstance(value, UUID):
        return str(value)  # a driver's subclass; orjson knows only the plain one
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    raise InvalidEventError(f"{type(value).__name__} has no JSON form")


def _refuse_unencodable(value: Any, path: str) -> None:
    """Walk the value and raise for the first part that JSON or PostgreSQL cannot hold."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InvalidEventError(f"keys must be strings, not {type(key).__name__}", field=path)
            _refuse_text(key, path)
            _refuse_unencodable(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _refuse_unencodable(inner, f"{path}[{index}]")
    elif isinstance(value, str):
        _refuse_text(value, path)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidEventError("NaN and infinity have no JSON form", field=path)
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InvalidEventError("integers beyond 64 bits have no portable JSON form", field=path)


def _refuse_text(text: str, path: str) -> None:
    if "\x00" in text:
        raise InvalidEventError("text must not contain NUL", field=path)
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidEventError("text must not contain lone surrogates", field=path)
