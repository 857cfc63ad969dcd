"""The traps of this pair of systems: what each must come to, by the source alone, and what it came to.

The expectations are computed here a second time, in plain Python over the legacy rows, by the rules of the
two systems. Nothing of the mapping or of its transforms takes part.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import xxhash
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from api.cli.demo_data import DemoData
from pipelines.migration.legacy_panel import TARGET_TABLES

_SPELLING = {"VMESS": "VMess", "VLESS": "VLESS", "TROJAN": "Trojan", "SHADOWSOCKS": "Shadowsocks"}
Trap = tuple[str, Any, Any]
Row = dict[str, Any]


def traps(data: DemoData, now: datetime) -> list[Trap]:
    """Each trap: what it is about, what is expected of the users that arrived, and what the target holds."""
    source, target = _source(data), _target(data)
    users = {row["id"]: row for row in source["users"]}
    arrived = [row for row in target["users"] if row["id"] in users]
    pairs = [(users[row["id"]], row) for row in arrived]
    return [
        ("clients keep their UUID (xxh128 of the key)", *_credentials(pairs, target, "id")),
        ("clients keep their password", *_credentials(pairs, target, "password")),
        ("protocols as the successor spells them", *_protocols(pairs, target)),
        ("status worked out", *_statuses(pairs, now)),
        ("NEVER means no expiry", _never(pairs), sum(new["expire"] is None for _, new in pairs)),
        ("expiry in unix seconds", len(_dated(pairs)), sum(_same_expiry(*pair) for pair in _dated(pairs))),
        ("admins keep their password hash", *_hashes(source, target)),
        ("users keep their admin under his new number", *_owners(source, target, pairs)),
        ("no name twice, whatever its case", 0, _shared_names(arrived)),
        ("usage before the last reset is kept, once", *_usage(pairs, target)),
        ("old subscription links lead to their user", *_links(pairs, target)),
        ("removed users stay behind", 0, sum(old["removed"] for old, _ in pairs)),
    ]


def _source(data: DemoData) -> dict[str, list[Row]]:
    with closing(sqlite3.connect(data.source_path)) as connection:
        connection.row_factory = sqlite3.Row
        return {
            name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")]  # noqa: S608 - two names of ours
            for name in ("users", "admins")
        }


def _target(data: DemoData) -> dict[str, list[Row]]:
    engine = create_engine(data.target_url, poolclass=NullPool)
    with engine.connect() as connection:
        return {
            name: [dict(row._mapping) for row in connection.execute(text(f"SELECT * FROM {name}"))]  # noqa: S608 - ours
            for name in TARGET_TABLES
        }


def _credentials(pairs: list[tuple[Row, Row]], target: dict[str, list[Row]], kind: str) -> tuple[int, int]:
    """How many proxies of a kind there are, and how many hold what the panel derives from its user's key."""
    keys = {new["id"]: xxhash.xxh128_digest(old["key"].encode()) for old, new in pairs}
    held = [row for row in target["proxies"] if kind in row["settings"]]
    wanted = {
        user: str(uuid.UUID(bytes=digest)) if kind == "id" else digest.hex() for user, digest in keys.items()
    }
    return len(held), sum(row["settings"][kind] == wanted[row["user_id"]] for row in held)


def _protocols(pairs: list[tuple[Row, Row]], target: dict[str, list[Row]]) -> tuple[int, int]:
    expected = Counter(
        (new["id"], _SPELLING[name]) for old, new in pairs for name in old["protocols"].split(",") if name
    )
    found = Counter((row["user_id"], row["type"]) for row in target["proxies"])
    return expected.total(), _kept(expected, found)


def _usage(pairs: list[tuple[Row, Row]], target: dict[str, list[Row]]) -> tuple[int, int]:
    """How many users' counters were reset, and how many have one log row that makes up their lifetime."""
    reset = {
        new["id"]: old["lifetime_used_traffic"] - new["used_traffic"]
        for old, new in pairs
        if old["lifetime_used_traffic"] > new["used_traffic"]
    }
    found = Counter((row["user_id"], row["used_traffic_at_reset"]) for row in target["user_usage_logs"])
    return len(reset), _kept(Counter(reset.items()), found)


def _links(pairs: list[tuple[Row, Row]], target: dict[str, list[Row]]) -> tuple[int, int]:
    """How many users have a link in the old panel, and how many such links lead to them."""
    expected = Counter((new["id"], f"/sub/{old['username']}/{old['key']}") for old, new in pairs)
    found = Counter((row["user_id"], row["path"]) for row in target["subscription_redirects"])
    return len(pairs), _kept(expected, found)


def _kept(expected: Counter[tuple[Any, Any]], found: Counter[tuple[Any, Any]]) -> int:
    """How many rows are as expected; one that nobody expected counts against them."""
    return (expected & found).total() - (found - expected).total()


def _statuses(pairs: list[tuple[Row, Row]], now: datetime) -> tuple[int, int]:
    return len(pairs), sum(_status(old, now) == new["status"] for old, new in pairs)


def _status(old: Row, now: datetime) -> str:
    if not old["enabled"]:
        return "disabled"
    if old["expire_strategy"] == "START_ON_FIRST_USE" and not old["activated"]:
        return "on_hold"
    if old["expire_strategy"] != "NEVER" and old["expire_date"] and _moment(old["expire_date"]) <= now:
        return "expired"
    if old["data_limit"] and old["used_traffic"] >= old["data_limit"]:
        return "limited"
    return "active"


def _moment(written: str) -> datetime:
    return datetime.fromisoformat(written).replace(tzinfo=UTC)


def _never(pairs: list[tuple[Row, Row]]) -> int:
    return sum(old["expire_strategy"] == "NEVER" or not old["expire_date"] for old, _ in pairs)


def _dated(pairs: list[tuple[Row, Row]]) -> list[tuple[Row, Row]]:
    return [pair for pair in pairs if pair[0]["expire_strategy"] != "NEVER" and pair[0]["expire_date"]]


def _same_expiry(old: Row, new: Row) -> bool:
    return bool(new["expire"] == int(_moment(old["expire_date"]).timestamp()))


def _hashes(source: dict[str, list[Row]], target: dict[str, list[Row]]) -> tuple[int, int]:
    hashes = {row["username"]: row["hashed_password"] for row in source["admins"]}
    same = sum(hashes[row["username"]] == row["hashed_password"] for row in target["admins"])
    return len(target["admins"]), same


def _owners(
    source: dict[str, list[Row]], target: dict[str, list[Row]], pairs: list[tuple[Row, Row]]
) -> tuple[int, int]:
    old_names = {row["id"]: row["username"] for row in source["admins"]}
    new_names = {row["id"]: row["username"] for row in target["admins"]}
    owned = [(old, new) for old, new in pairs if old["admin_id"] is not None]
    same = sum(old_names.get(old["admin_id"]) == new_names.get(new["admin_id"], "") for old, new in owned)
    return len(owned), same


def _shared_names(arrived: list[Row]) -> int:
    return sum(count - 1 for count in Counter(row["username"].lower() for row in arrived).values())
