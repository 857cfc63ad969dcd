"""What the legacy panel computes and its successor stores: status, expiry, credentials, usage, old links."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

import orjson
import polars as pl
import xxhash

from pipelines.migration.invariants import register_invariant
from pipelines.migration.transforms import Conversion, Settings, register_child_function, register_function

_PROTOCOLS = {"VMESS": "VMess", "VLESS": "VLESS", "TROJAN": "Trojan", "SHADOWSOCKS": "Shadowsocks"}
"""How the successor spells them: it reads no other spelling."""

_HEX32 = re.compile("[0-9a-fA-F]{32}")
_CIPHER = "chacha20-ietf-poly1305"


@register_function("panel_status")
def panel_status(inputs: Sequence[pl.Expr], settings: Settings) -> pl.Expr:
    """The status that the panel would show at the run's `now`.

    Inputs: enabled, activated, expire_strategy, expire_date (naive UTC), data_limit, used_traffic.
    """
    enabled, activated, strategy, expire_date, data_limit, used = inputs
    now = pl.lit(settings.now.replace(tzinfo=None)).cast(pl.Datetime("us"))
    waiting = (strategy == "START_ON_FIRST_USE") & ~activated
    expired = (strategy != "NEVER") & (expire_date <= now)
    limited = (data_limit > 0) & (used >= data_limit)
    return (
        pl.when(~enabled)
        .then(pl.lit("disabled"))
        .when(waiting)
        .then(pl.lit("on_hold"))
        .when(expired)
        .then(pl.lit("expired"))
        .when(limited)
        .then(pl.lit("limited"))
        .otherwise(pl.lit("active"))
    )


@register_function("panel_expiry")
def panel_expiry(inputs: Sequence[pl.Expr], _: Settings) -> pl.Expr:
    """The expiry date, which means nothing while the strategy is NEVER. Inputs: strategy, date."""
    strategy, expire_date = inputs
    return pl.when(strategy != "NEVER").then(expire_date)


@register_child_function(
    "derived_credentials",
    conversions=(Conversion("uuid", "panel key", "dashed"),),
    params=("auth_algorithm",),
)
def derived_credentials(frame: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """One proxy for each protocol of a user. Sources: key (32 hex digits), protocols (comma-joined).

    The panel hashes the key with XXH128 (`auth_algorithm: xxh128`) or takes it as it is (`plain`): the
    bytes are the UUID, the hex digits the password. A protocol that is none becomes null.
    """
    algorithm = settings.params.get("auth_algorithm")
    if algorithm not in ("xxh128", "plain"):
        raise ValueError("auth_algorithm must be xxh128 or plain")
    digits = [_digits(key, algorithm) for key in frame["key"]]
    made = (
        frame.select(
            "_record", pl.Series("digits", digits, dtype=pl.String), pl.col("protocols").str.split(",")
        )
        .explode("protocols")
        .filter(pl.col("protocols").is_not_null() & pl.col("digits").is_not_null())
    )
    types = made["protocols"].replace_strict(_PROTOCOLS, default=None, return_dtype=pl.String)
    settings_json = [_settings(kind, digits) for kind, digits in zip(types, made["digits"], strict=True)]
    return made.select("_record", types.alias("type"), pl.Series("settings", settings_json, dtype=pl.String))


@register_child_function("usage_before_reset")
def usage_before_reset(frame: pl.DataFrame, _: Settings) -> pl.DataFrame:
    """One log row for what a user had used before his counter was last reset, where that is anything.

    Sources: lifetime_used_traffic, used_traffic, online_at, created_at (naive UTC). The panel keeps no
    moment of its resets; the row has the last one that it knows of the user, never one of the run.
    """
    before = pl.col("lifetime_used_traffic") - pl.col("used_traffic")
    known = pl.coalesce("online_at", "created_at").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    made = frame.select(
        "_record", before.cast(pl.Int64).alias("used_traffic_at_reset"), known.alias("reset_at")
    )
    return made.filter(pl.col("used_traffic_at_reset") > 0)


@register_child_function("subscription_path")
def subscription_path(frame: pl.DataFrame, _: Settings) -> pl.DataFrame:
    """The path at which a client still asks for his subscription, for whoever redirects it.

    Sources: username and key, both as the panel has them. The path admits whoever knows it: a secret.
    """
    path = pl.concat_str(pl.lit("/sub/"), "username", pl.lit("/"), "key").alias("path")
    return frame.select("_record", path).filter(pl.col("path").is_not_null())


@register_invariant(
    "derived_credentials", "each client's credentials are those that the panel derives itself"
)
def same_credentials(source: pl.DataFrame, children: pl.DataFrame, settings: Settings) -> pl.Series:
    """The users whose proxies are not what the panel serves, in ids, passwords or protocols.

    The panel's own rule: `UUID(bytes=xxh128(key))` and `xxh128(key).hexdigest()`, or the key as it is.
    """
    plain = settings.params["auth_algorithm"] == "plain"
    found: dict[str, list[tuple[str, str]]] = {}
    for record, kind, told in zip(children["_record"], children["type"], children["settings"], strict=True):
        held = orjson.loads(told)
        found.setdefault(record, []).append((kind, str(held.get("id") or held.get("password"))))
    wrong = []
    for record, key, protocols in source.select("_record", "key", "protocols").iter_rows():
        raw = bytes.fromhex(key) if plain else xxhash.xxh128_digest(key.encode())
        identity = str(uuid.UUID(bytes=raw))
        ids = {"VMess": identity, "VLESS": identity}
        served = [_PROTOCOLS.get(name, name) for name in (protocols or "").split(",") if name]
        if sorted((kind, ids.get(kind, raw.hex())) for kind in served) != sorted(found.get(record, [])):
            wrong.append(record)
    return pl.Series(wrong, dtype=pl.String)


def _digits(key: str | None, algorithm: str) -> str | None:
    if key is None:
        return None
    return xxhash.xxh128(key.encode()).hexdigest() if algorithm == "xxh128" else key


def _settings(kind: str | None, digits: str) -> str:
    if kind in ("VMess", "VLESS"):
        identity = str(uuid.UUID(hex=digits)) if _HEX32.fullmatch(digits) else digits  # a rule refuses it
        return orjson.dumps({"id": identity} | ({"flow": ""} if kind == "VLESS" else {})).decode()
    extra = {"flow": ""} if kind == "Trojan" else {"method": _CIPHER}
    return orjson.dumps({"password": digits} | extra).decode()
