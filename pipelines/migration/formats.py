"""Formats of UUIDs and moments: from any of them to any other, over whole columns.

What is not written in the format that the mapping names becomes null, and its record is quarantined.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import polars as pl
import xxhash
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_UUID_FORMS = {
    "hex32": r"^[0-9a-fA-F]{32}$",
    "dashed": r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    "urn": r"^(?i:urn:uuid:)[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
}
_ISO = "%Y-%m-%dT%H:%M:%S%.f%:z"
_END_S = 253_402_300_800
"""The first second of the year 10000, which has no calendar form."""


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone such as Europe/Berlin") from None
    return name


class _Formats(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class UuidFormats(_Formats):
    """From one written form to another. `derived` makes the UUID of the text that stands there: the bytes
    of its XXH128, or UUIDv5 under a namespace."""

    source: Literal["hex32", "dashed", "urn", "bytes", "derived"] = Field(alias="from")
    target: Literal["hex32", "dashed", "urn", "bytes"] = Field(alias="to")
    by: Literal["xxh128", "uuid5"] | None = None
    namespace: uuid.UUID | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.source == "derived") != (self.by is not None):
            raise ValueError("'by' says how a UUID is derived, and 'derived' needs it")
        if (self.by == "uuid5") != (self.namespace is not None):
            raise ValueError("'namespace' belongs to uuid5, which needs it")
        return self


class DatetimeFormats(_Formats):
    """From one form to another. `zone` is that of the side without one; `naive_utc` is naive in UTC."""

    source: Literal["naive", "naive_utc", "timestamptz", "unix_s", "unix_ms", "iso", "rfc2822"] = Field(
        alias="from"
    )
    target: Literal["naive", "naive_utc", "timestamptz", "unix_s", "unix_ms", "iso", "rfc2822"] = Field(
        alias="to"
    )
    zone: Annotated[str, AfterValidator(_zone)] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if ("naive" in (self.source, self.target)) != (self.zone is not None):
            raise ValueError("'zone' belongs to naive, which needs it")
        return self


def convert_uuid(value: pl.Expr, formats: UuidFormats) -> pl.Expr:
    """The UUIDs in another form; null where they are not in the one named."""
    digits = _digits_of(value, formats)
    if formats.target == "hex32":
        return digits
    if formats.target == "bytes":
        return digits.str.decode("hex")
    cuts = [(0, 8), (8, 4), (12, 4), (16, 4), (20, 12)]
    dashed = pl.concat_str([digits.str.slice(start, size) for start, size in cuts], separator="-")
    return dashed if formats.target == "dashed" else pl.concat_str([pl.lit("urn:uuid:"), dashed])


def _digits_of(value: pl.Expr, formats: UuidFormats) -> pl.Expr:
    if formats.source == "bytes":
        return pl.when(value.bin.size() == 16).then(value.bin.encode("hex"))
    if formats.source == "derived":
        return value.map_batches(lambda texts: _derived(texts, formats), return_dtype=pl.String)
    right_form = value.str.contains(_UUID_FORMS[formats.source])
    digits = value.str.to_lowercase().str.replace("urn:uuid:", "", literal=True)
    return pl.when(right_form).then(digits.str.replace_all("-", "", literal=True))


def _derived(texts: pl.Series, formats: UuidFormats) -> pl.Series:
    def derive(text: str) -> str:
        if formats.namespace is not None:
            return uuid.uuid5(formats.namespace, text).hex
        return xxhash.xxh128_hexdigest(text.encode())

    made = [None if text is None else derive(text) for text in texts]
    return pl.Series(texts.name, made, dtype=pl.String)


def convert_datetime(value: pl.Expr, formats: DatetimeFormats) -> pl.Expr:
    """The moments in another form; null where they are not in the one named."""
    moment = _MOMENT_OF[formats.source](value, formats.zone)
    return _MOMENT_TO[formats.target](moment, formats.zone)


def _local(value: pl.Expr, zone: str | None) -> pl.Expr:
    """A moment that the zone's clock shows twice or never is none that can be carried over."""
    zoned = value.dt.replace_time_zone(zone or "UTC", ambiguous="null", non_existent="null")
    return zoned.dt.convert_time_zone("UTC")


def _iso_moment(value: pl.Expr, _: str | None) -> pl.Expr:
    with_offset = value.str.replace(r"[Zz]$", "+00:00").str.replace(" ", "T", literal=True)
    return with_offset.str.to_datetime(_ISO, strict=False, time_unit="us").dt.convert_time_zone("UTC")


def _rfc_moment(value: pl.Expr, _: str | None) -> pl.Expr:
    """RFC 2822, 3.3: the day's name is optional, and GMT and UT are +0000."""
    text = value.str.strip_chars().str.replace(r"^[A-Za-z]{3},\s*", "")
    numbered = text.str.replace(r"\s+(GMT|UT|UTC|Z)$", " +0000")
    parsed = numbered.str.to_datetime("%d %b %Y %H:%M:%S %z", strict=False, time_unit="us")
    return parsed.dt.convert_time_zone("UTC")


def _epoch(value: pl.Expr, per_second: int) -> pl.Expr:
    microseconds = value.cast(pl.Int64, strict=False) * (1_000_000 // per_second)
    moment = microseconds.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.when(value.cast(pl.Float64, strict=False).abs() < _END_S * per_second).then(moment)


_MOMENT_OF: dict[str, Callable[[pl.Expr, str | None], pl.Expr]] = {
    "naive": _local,
    "naive_utc": lambda value, _: value.dt.replace_time_zone("UTC"),
    "timestamptz": lambda value, _: value,
    "unix_s": lambda value, _: _epoch(value, 1),
    "unix_ms": lambda value, _: _epoch(value, 1000),
    "iso": _iso_moment,
    "rfc2822": _rfc_moment,
}
_MOMENT_TO: dict[str, Callable[[pl.Expr, str | None], pl.Expr]] = {
    "naive": lambda moment, zone: moment.dt.convert_time_zone(zone or "UTC").dt.replace_time_zone(None),
    "naive_utc": lambda moment, _: moment.dt.replace_time_zone(None),
    "timestamptz": lambda moment, _: moment,
    "unix_s": lambda moment, _: moment.dt.epoch("s"),
    "unix_ms": lambda moment, _: moment.dt.epoch("ms"),
    "iso": lambda moment, _: moment.dt.to_string("%Y-%m-%dT%H:%M:%S%.6fZ"),
    "rfc2822": lambda moment, _: moment.dt.to_string("%a, %d %b %Y %H:%M:%S +0000"),
}


def described(formats: Any) -> tuple[str, str]:
    """Both forms in words, as a conversion is counted and told: how it was derived, in which zone."""
    names = [formats.source, formats.target]
    if isinstance(formats, UuidFormats) and formats.by:
        names[0] = f"derived by {formats.by}"
    if isinstance(formats, DatetimeFormats) and formats.zone:
        names = [f"naive {formats.zone}" if name == "naive" else name for name in names]
    return names[0], names[1]
