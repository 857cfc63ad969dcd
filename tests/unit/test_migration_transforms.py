"""Each transform, alone: what it makes, and what it marks as failed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_DNS, UUID, uuid5

import orjson
import polars as pl
import pytest
import xxhash

from pipelines.migration import Settings, register_function
from pipelines.migration.panel_functions import derived_credentials, panel_expiry, panel_status
from pipelines.migration.transforms import apply_transform, check_transform

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings({"auth_algorithm": "xxh128"}, NOW)
KEY = "550e8400e29b41d4a716446655440000"
DASHED = "550e8400-e29b-41d4-a716-446655440000"
MOMENT = datetime(2024, 2, 29, 12, 30, 15, 250000)  # noqa: DTZ001 - naive on purpose
AWARE = MOMENT.replace(tzinfo=UTC)
WHOLE = MOMENT.replace(microsecond=0)
SHOWN_TWICE = datetime(2024, 10, 27, 2, 30)  # noqa: DTZ001 - naive on purpose
SHOWN_NEVER = datetime(2024, 3, 31, 2, 30)  # noqa: DTZ001 - naive on purpose


def applied(name: str, argument: Any, values: list[Any]) -> tuple[list[Any], list[Any]]:
    """The transformed values, and which of them failed."""
    value = apply_transform(name, check_transform(name, argument), [pl.col("v")], SETTINGS)
    frame = pl.DataFrame({"v": values}, strict=False)
    failed = value.failed if value.failed is not None else pl.lit(value=False)
    return frame.select(value.expr.alias("v"))["v"].to_list(), frame.select(failed.alias("f"))["f"].to_list()


@pytest.mark.parametrize(
    ("name", "argument", "given", "made"),
    [
        ("copy", None, "A", "A"),
        ("const", "x", "A", "x"),
        ("default", "x", None, "x"),
        ("lower", None, "ÄB", "äb"),
        ("strip", None, " a ", "a"),
        ("cast", "integer", "12", 12),
        ("cast", "text", 12, "12"),
        ("cast", "float", "1.5", 1.5),
        ("cast", "boolean", 1, True),
        ("map", {"VMESS": "VMess"}, "VMESS", "VMess"),
        ("uuid", {"from": "hex32", "to": "dashed"}, KEY.upper(), DASHED),
        ("uuid", {"from": "dashed", "to": "hex32"}, DASHED, KEY),
        ("uuid", {"from": "dashed", "to": "urn"}, DASHED, f"urn:uuid:{DASHED}"),
        ("uuid", {"from": "urn", "to": "dashed"}, f"urn:uuid:{DASHED}", DASHED),
        ("datetime", {"from": "naive_utc", "to": "timestamptz"}, MOMENT, AWARE),
        ("datetime", {"from": "naive_utc", "to": "unix_s"}, MOMENT, 1709209815),
        ("datetime", {"from": "naive_utc", "to": "unix_ms"}, MOMENT, 1709209815250),
        ("datetime", {"from": "unix_s", "to": "naive_utc"}, 0, datetime(1970, 1, 1)),  # noqa: DTZ001 - naive
        (
            "datetime",
            {"from": "unix_ms", "to": "timestamptz"},
            1500,
            datetime(1970, 1, 1, 0, 0, 1, 500000, UTC),
        ),
        ("datetime", {"from": "iso", "to": "unix_s"}, "2024-02-29T13:30:15.25+01:00", 1709209815),
        ("datetime", {"from": "iso", "to": "timestamptz"}, "2024-02-29T12:30:15.25Z", AWARE),
        ("datetime", {"from": "naive_utc", "to": "iso"}, MOMENT, "2024-02-29T12:30:15.250000Z"),
        ("datetime", {"from": "naive", "zone": "Asia/Tehran", "to": "unix_s"}, MOMENT, 1709197215),
        ("datetime", {"from": "unix_s", "to": "naive", "zone": "Asia/Tehran"}, 1709197215, WHOLE),
        ("datetime", {"from": "rfc2822", "to": "unix_s"}, "Thu, 29 Feb 2024 13:30:15 +0100", 1709209815),
        ("datetime", {"from": "rfc2822", "to": "unix_s"}, "29 Feb 2024 12:30:15 GMT", 1709209815),
        ("datetime", {"from": "naive_utc", "to": "rfc2822"}, MOMENT, "Thu, 29 Feb 2024 12:30:15 +0000"),
        ("rename", None, "A", "A"),
        ("cast", "boolean", "Yes", True),
        ("cast", "decimal", " 12.50", "12.50"),
        ("cast", "date", "2024-02-29", WHOLE.date()),
        ("uuid", {"from": "bytes", "to": "dashed"}, UUID(DASHED).bytes, DASHED),
        ("uuid", {"from": "dashed", "to": "bytes"}, DASHED, UUID(DASHED).bytes),
        (
            "uuid",
            {"from": "derived", "by": "xxh128", "to": "dashed"},
            KEY,
            "92adcd0d-5f42-e568-7cb7-b4ca80d1756b",
        ),
        (
            "uuid",
            {"from": "derived", "by": "uuid5", "namespace": str(NAMESPACE_DNS), "to": "hex32"},
            "example.org",
            uuid5(NAMESPACE_DNS, "example.org").hex,
        ),
        ("json_parse", None, '{"b": [1, "x"]}', '{"b":[1,"x"]}'),
        ("json_parse", {"get": "$.a.b[1]"}, '{"a": {"b": [1, "x"]}}', "x"),
        ("json_dump", None, 'a "b"', '"a \\"b\\""'),
        ("json_dump", None, 12, "12"),
        ("json_dump", None, True, "true"),
    ],
)
def test_a_transform(name: str, argument: Any, given: Any, made: Any) -> None:
    values, failed = applied(name, argument, [given])
    assert values == [made]
    assert failed == [False]


@pytest.mark.parametrize(
    ("name", "argument", "given"),
    [
        ("cast", "integer", "twelve"),
        ("map", {"a": "b"}, "c"),
        ("uuid", {"from": "hex32", "to": "dashed"}, DASHED),
        ("uuid", {"from": "hex32", "to": "dashed"}, "zz" + KEY[2:]),
        ("datetime", {"from": "iso", "to": "unix_s"}, "2024-02-30T00:00:00Z"),
        ("datetime", {"from": "unix_s", "to": "timestamptz"}, 10**15),
        ("datetime", {"from": "naive", "zone": "Europe/Berlin", "to": "iso"}, SHOWN_TWICE),
        ("datetime", {"from": "naive", "zone": "Europe/Berlin", "to": "iso"}, SHOWN_NEVER),
        ("datetime", {"from": "rfc2822", "to": "iso"}, "Thu, 30 Feb 2024 13:30:15 +0100"),
        ("uuid", {"from": "bytes", "to": "dashed"}, b"short"),
        ("json_parse", None, "{'a': 1}"),
        ("json_parse", {"get": "$.a"}, "nonsense"),
        ("cast", "boolean", "perhaps"),
        ("cast", "decimal", "1,5"),
        ("cast", "date", "29.02.2024"),
    ],
)
def test_what_cannot_be_brought_over_is_marked_and_null_is_not(name: str, argument: Any, given: Any) -> None:
    values, failed = applied(name, argument, [given, None])
    assert values == [None, None]
    assert failed == [True, False]


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("nope", None),
        ("lower", 3),
        ("cast", "money"),
        ("uuid", {"from": "hex32"}),
        ("uuid", {"from": "derived", "to": "hex32"}),
        ("uuid", {"from": "hex32", "to": "dashed", "by": "xxh128"}),
        ("map", ["a"]),
        ("datetime", {"from": "naive", "to": "iso"}),
        ("datetime", {"from": "naive", "to": "iso", "zone": "Mars/Olympus"}),
        ("datetime", {"from": "iso", "to": "unix_s", "zone": "UTC"}),
        ("json_parse", {"get": "a.b"}),
    ],
)
def test_a_wrong_argument_is_refused(name: str, argument: Any) -> None:
    with pytest.raises(ValueError, match=name):
        check_transform(name, argument)


def test_a_registered_function_takes_all_inputs() -> None:
    @register_function("full_name")
    def full_name(inputs: Sequence[pl.Expr], settings: Settings) -> pl.Expr:
        return pl.concat_str(inputs, separator=" ") + pl.lit(str(settings.now.year))

    value = apply_transform(
        "full_name", check_transform("full_name", None), [pl.col("a"), pl.col("b")], SETTINGS
    )
    assert pl.DataFrame({"a": ["x"], "b": ["y"]}).select(value.expr).item() == "x y2026"


def test_credentials_are_those_that_the_panel_derives() -> None:
    frame = pl.DataFrame(
        {"_record": [7, 8], "key": [KEY, None], "protocols": ["VLESS,TROJAN,VMESS", "VLESS"]}
    )
    made = derived_credentials(frame, SETTINGS)
    digest = xxhash.xxh128(KEY.encode())
    settings = {kind: orjson.loads(text) for _, kind, text in made.rows()}
    assert made["_record"].to_list() == [7, 7, 7]
    assert settings["VLESS"] == {"id": str(UUID(bytes=digest.digest())), "flow": ""}
    assert settings["VMess"] == {"id": "92adcd0d-5f42-e568-7cb7-b4ca80d1756b"}
    assert settings["Trojan"]["password"] == digest.hexdigest()


def test_plain_credentials_are_the_key_itself() -> None:
    frame = pl.DataFrame({"_record": [7], "key": [KEY], "protocols": ["VMESS"]})
    made = derived_credentials(frame, Settings({"auth_algorithm": "plain"}, NOW))
    assert orjson.loads(made["settings"][0]) == {"id": DASHED}


def test_no_algorithm_is_no_silent_default() -> None:
    frame = pl.DataFrame({"_record": [7], "key": [KEY], "protocols": ["VMESS"]})
    with pytest.raises(ValueError, match="auth_algorithm"):
        derived_credentials(frame, Settings({}, NOW))


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ((False, True, "NEVER", None, None, 0), "disabled"),
        ((True, False, "START_ON_FIRST_USE", None, None, 0), "on_hold"),
        ((True, True, "FIXED_DATE", datetime(2025, 12, 31), None, 0), "expired"),  # noqa: DTZ001 - naive
        ((True, True, "NEVER", datetime(2025, 12, 31), None, 0), "active"),  # noqa: DTZ001 - naive
        ((True, True, "NEVER", None, 10, 10), "limited"),
        ((True, True, "NEVER", None, 0, 10), "active"),
        ((True, True, "FIXED_DATE", datetime(2026, 1, 2), 20, 10), "active"),  # noqa: DTZ001 - naive
    ],
)
def test_the_status_is_what_the_panel_would_show(row: tuple[Any, ...], status: str) -> None:
    schema: dict[str, Any] = {
        "enabled": pl.Boolean,
        "activated": pl.Boolean,
        "strategy": pl.String,
        "date": pl.Datetime("us"),
        "limit": pl.Int64,
        "used": pl.Int64,
    }
    frame = pl.DataFrame([row], schema=schema, orient="row")
    assert frame.select(panel_status([pl.col(name) for name in schema], SETTINGS)).item() == status


def test_a_date_means_nothing_where_nothing_expires() -> None:
    frame = pl.DataFrame({"s": ["NEVER", "FIXED_DATE"], "d": [MOMENT, MOMENT]})
    assert frame.select(panel_expiry([pl.col("s"), pl.col("d")], SETTINGS)).to_series().to_list() == [
        None,
        MOMENT,
    ]
