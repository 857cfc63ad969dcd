"""The demo's databases: a legacy panel in SQLite with planted defects, and its successor's tables.

Everything is made of a seed, so the same call makes the same records. Password hashes have bcrypt's form
but hash nothing.
"""

from __future__ import annotations

import random
import sqlite3
import string
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pipelines.migration.errors import SourceError
from pipelines.migration.target import open_target

DEFECTS: dict[str, tuple[str, str, str]] = {
    "bad_bcrypt": ("admins", "hash", "hashed_password"),
    "owner_quarantined": ("users", "parent", "admin_id"),
    "orphan_admin": ("users", "reference", "admin_id"),
    "malformed_key": ("users", "pattern", "key"),
    "case_collision": ("users", "unique", "username"),
    "year_9999": ("users", "range", "expire"),
    "long_note": ("users", "max_length", "note"),
    "ill_typed": ("users", "type", "used_traffic"),
    "unknown_protocol": ("users", "required", "type"),
}
"""Each class of planted defect: the entity, the rule and the column that must find it."""

_SCHEMA = """
CREATE TABLE admins (
    id INTEGER PRIMARY KEY, username VARCHAR(32) NOT NULL UNIQUE, hashed_password VARCHAR(128) NOT NULL,
    created_at DATETIME, is_sudo BOOLEAN NOT NULL, password_reset_at DATETIME, enabled BOOLEAN NOT NULL,
    all_services_access BOOLEAN NOT NULL, modify_users_access BOOLEAN NOT NULL,
    subscription_url_prefix VARCHAR(256) NOT NULL);
CREATE TABLE users (
    id INTEGER PRIMARY KEY, username VARCHAR(32) NOT NULL UNIQUE, key VARCHAR(64) NOT NULL UNIQUE,
    enabled BOOLEAN NOT NULL, activated BOOLEAN NOT NULL, removed BOOLEAN NOT NULL,
    used_traffic BIGINT NOT NULL, lifetime_used_traffic BIGINT NOT NULL, data_limit BIGINT,
    data_limit_reset_strategy VARCHAR(16) NOT NULL, expire_strategy VARCHAR(24) NOT NULL,
    expire_date DATETIME, usage_duration BIGINT, activation_deadline DATETIME, admin_id INTEGER,
    protocols VARCHAR(64) NOT NULL, note VARCHAR(500), created_at DATETIME NOT NULL, sub_updated_at DATETIME,
    online_at DATETIME, edit_at DATETIME, ip_limit INTEGER NOT NULL, settings VARCHAR(1024));
"""
_BCRYPT_LETTERS = "./" + string.ascii_letters + string.digits
_PROTOCOLS = ("VMESS", "VLESS", "TROJAN", "SHADOWSOCKS")
_NOW = datetime(2026, 1, 1)  # noqa: DTZ001 - the panel's moments are naive UTC
_BAD_ADMIN = 2
Row = dict[str, Any]


def mapping_path() -> Path:
    """The demo's mapping file: in the repository, or in the installed package."""
    packaged = Path(__file__).parent / "examples" / "legacy-panel" / "mapping.yaml"
    in_repository = Path(__file__).parents[2] / "examples" / "legacy-panel" / "mapping.yaml"
    return packaged if packaged.exists() else in_repository


def generate_legacy_panel(
    path: Path, *, users: int = 5000, admins: int = 12, seed: int = 1
) -> dict[str, int]:
    """Make a legacy database in a new file; how many records each class of defect must quarantine.

    Beside the classes of `DEFECTS` the answer has `removed`: soft-deleted users, to be filtered. Needs
    at least 200 users and 3 admins. Raises SourceError, and changes nothing, when the file exists.
    """
    if path.exists():
        raise SourceError(f"the file {path.name!r} exists already", stage="start")
    if users < 200 or admins < 3:
        raise ValueError("a legacy panel has at least 200 users and 3 admins")
    chance = random.Random(seed)  # noqa: S311 - made-up people need no secrecy
    people = [_user(chance, number, admins) for number in range(1, users + 1)]
    expected = _plant(chance, people)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(_SCHEMA)
        _insert(connection, "admins", [_admin(chance, number) for number in range(1, admins + 1)])
        _insert(connection, "users", people)
    return {"bad_bcrypt": 1, **expected}


def found_defects(validation_errors: list[dict[str, Any]]) -> dict[str, int]:
    """The records that each class of defect quarantined, from DATA_VALIDATED's `validation_errors`."""
    counts = {(item["entity"], item["rule"], item["column"]): item["count"] for item in validation_errors}
    return {name: counts.get(place, 0) for name, place in DEFECTS.items()}


def create_target_schema(url: str) -> None:
    """Create the successor's tables in a PostgreSQL database; those that are there are left alone.

    Raises TargetError when the database cannot be reached.
    """
    target = open_target(url)
    try:
        with target.transaction() as transaction:
            _target_tables().create_all(transaction.connection)
    finally:
        target.close()


def _admin(chance: random.Random, number: int) -> Row:
    return {
        "id": number * 3,  # gaps, as deleted admins leave them: the new numbers differ from the old ones
        "username": f"admin_{number:02d}",
        "hashed_password": "not-a-hash" if number == _BAD_ADMIN else _bcrypt(chance),
        "created_at": _text(_NOW - timedelta(days=chance.randrange(400, 900))),
        "is_sudo": number == 1,
        "password_reset_at": None,
        "enabled": True,
        "all_services_access": True,
        "modify_users_access": True,
        "subscription_url_prefix": "",
    }


def _user(chance: random.Random, number: int, admins: int) -> Row:
    strategy = chance.choice(["NEVER", "FIXED_DATE", "FIXED_DATE", "START_ON_FIRST_USE"])
    activated = strategy != "START_ON_FIRST_USE" or chance.random() < 0.5
    owner = chance.choice([admin for admin in range(1, admins + 1) if admin != _BAD_ADMIN])
    limit = chance.choice([None, 10 * 2**30, 50 * 2**30, 200 * 2**30])
    used = chance.randrange(0, (limit or 100 * 2**30) * 11 // 10)
    created = _NOW - timedelta(minutes=chance.randrange(1, 600_000))
    dated = strategy == "FIXED_DATE" or (activated and strategy != "NEVER")
    waiting = not activated
    return {
        "id": number,
        "username": f"user{number:06d}",
        "key": f"{chance.getrandbits(128):032x}",
        "enabled": chance.random() < 0.95,
        "activated": activated,
        "removed": False,
        "used_traffic": used,
        "lifetime_used_traffic": used + chance.randrange(2**40) * (number % 10 > 0),  # a tenth never reset
        "data_limit": limit,
        "data_limit_reset_strategy": chance.choice(["no_reset", "day", "week", "month", "year"]),
        "expire_strategy": strategy,
        "expire_date": _text(_NOW + timedelta(days=chance.randrange(-200, 4000))) if dated else None,
        "usage_duration": 30 * 86_400 if waiting else None,
        "activation_deadline": _text(_NOW + timedelta(days=60)) if waiting else None,
        "admin_id": owner * 3 if chance.random() < 0.97 else None,
        "protocols": ",".join(sorted(chance.sample(_PROTOCOLS, chance.randrange(1, 4)))),
        "note": chance.choice(
            [None, None, "", "paid, by card", 'note; with "quotes"\nand lines', "\\N", "Ünïcode ✓"]
        ),
        "created_at": _text(created),
        "sub_updated_at": None,
        "online_at": _text(created + timedelta(minutes=5)) if chance.random() < 0.7 else None,
        "edit_at": None,
        "ip_limit": -1,
        "settings": None,
    }


def _plant(chance: random.Random, people: list[Row]) -> dict[str, int]:
    """Give some users one defect each, never two; how many records each class must quarantine."""
    count = max(2, len(people) // 500)
    victims = iter(chance.sample(people, len(people)))

    def take() -> Iterator[Row]:
        return (next(victims) for _ in range(count))

    for person in take():
        person["admin_id"] = _BAD_ADMIN * 3
    for person in take():
        person["admin_id"] = 100_000
    for person in take():
        person["key"] = "zz" + person["key"][2:]
    for person, double in zip(take(), take(), strict=True):
        double["username"] = person["username"].upper()
    for person in take():
        person["expire_strategy"], person["expire_date"] = "FIXED_DATE", "9999-12-31 23:59:59.000000"
    for person in take():
        person["note"] = "x" * 600
    for person in take():
        person["used_traffic"] = "a lot"
    for person in take():
        person["protocols"] = "VLESS,CARRIER_PIGEON"
    removed = [next(victims) for _ in range(len(people) // 25)]
    for person in removed:
        person["removed"] = True
    planted = dict.fromkeys((name for name in DEFECTS if name != "bad_bcrypt"), count)
    return {**planted, "case_collision": 2 * count, "removed": len(removed)}


def _bcrypt(chance: random.Random) -> str:
    return "$2b$12$" + "".join(chance.choices(_BCRYPT_LETTERS, k=53))


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")


def _insert(connection: sqlite3.Connection, table: str, rows: list[Row]) -> None:
    columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in rows[0]]
    statement = sa.insert(sa.table(table, *columns))
    connection.executemany(str(statement.compile()), rows)


def _target_tables() -> sa.MetaData:
    metadata = sa.MetaData()
    moment = sa.DateTime(timezone=True)
    sa.Table(
        "admins",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("username", sa.String(34), nullable=False, unique=True),
        sa.Column("hashed_password", sa.String(128), nullable=False),
        sa.Column("created_at", moment),
        sa.Column("is_sudo", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("password_reset_at", moment),
        sa.Column("telegram_id", sa.BigInteger),
        sa.Column("discord_webhook", sa.String(1024)),
        sa.Column("users_usage", sa.BigInteger, nullable=False, server_default="0"),
    )
    _users_table(metadata)
    sa.Table(
        "proxies",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
        sa.Column(
            "type", sa.Enum("VMess", "VLESS", "Trojan", "Shadowsocks", name="proxytypes"), nullable=False
        ),
        sa.Column("settings", sa.JSON, nullable=False),
    )
    sa.Table(
        "user_usage_logs",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
        sa.Column("used_traffic_at_reset", sa.BigInteger, nullable=False),
        sa.Column("reset_at", moment, nullable=False),
    )
    sa.Table(
        "subscription_redirects",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
        sa.Column("path", sa.String(128), nullable=False, unique=True),
    )
    return metadata


def _users_table(metadata: sa.MetaData) -> None:
    moment = sa.DateTime(timezone=True)
    resets = sa.Enum("no_reset", "day", "week", "month", "year", name="userdatalimitresetstrategy")
    sa.Table(
        "users",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("username", sa.String(34), nullable=False, unique=True),
        sa.Column(
            "status",
            sa.Enum("active", "disabled", "limited", "expired", "on_hold", name="userstatus"),
            nullable=False,
        ),
        sa.Column("used_traffic", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("data_limit", sa.BigInteger),
        sa.Column("data_limit_reset_strategy", resets, nullable=False, server_default="no_reset"),
        sa.Column("expire", sa.Integer),
        sa.Column("on_hold_expire_duration", sa.BigInteger),
        sa.Column("on_hold_timeout", moment),
        sa.Column("admin_id", sa.ForeignKey("admins.id"), index=True),
        sa.Column("note", sa.String(500)),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("online_at", moment),
        sa.Column("edit_at", moment),
        sa.Column("sub_last_user_agent", sa.String(512)),
        sa.Column("auto_delete_in_days", sa.Integer),
        sa.Column("last_status_change", moment),
    )


TARGET_TABLES = (*_target_tables().tables,)
"""The successor's tables, parents before children."""
