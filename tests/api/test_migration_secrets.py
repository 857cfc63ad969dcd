"""Canary secrets, planted in the source and in every connection: not one is found in what a migration leaves.

Searched are all events, the rows and reports beside them, every HTTP answer, Dagster's whole database (runs,
tags, metadata, logs), its home, the services' logs and the files of the run. Not searched are the places that
hold secrets by their nature: the source, the target (before-images of its own rows included), and the
operator's connections file and key.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import xxhash
import yaml

from api import event_service
from eventsourcing import Settings
from pipelines.migration.legacy_panel import create_target_schema, generate_legacy_panel, mapping_path
from tests.api.conftest import serving
from tests.api.test_migrations import ended, eventually, on_target
from tests.databases import execute

KEY = "c0ffee00c0ffee00c0ffee00c0ffee42"
BAD_KEY = "canary-malformed-key"
HASH = "$2b$12$" + "CanaryOfThePasswordHash".ljust(53, "x")
REFUSED_HASH = "$2b$12$" + "CanaryThatTheTargetRefuses".ljust(53, "y")
PLAIN = "canary-password-in-plain-text"
CONNECTIONS = {"target": "canary-target-password", "events": "canary-events-password"}
HMAC = "canary-hmac-secret"


def secrets() -> list[str]:
    derived = [
        (str(UUID(bytes=digest.digest())), digest.hexdigest())
        for digest in (xxhash.xxh128(key.encode()) for key in (KEY, BAD_KEY))
    ]
    planted = [KEY, BAD_KEY, HASH, REFUSED_HASH, PLAIN, HMAC, *CONNECTIONS.values()]
    return [*planted, *(text for pair in derived for text in pair)]


def plant(source: Path) -> None:
    with closing(sqlite3.connect(source)) as connection, connection:
        users = [key for (key,) in connection.execute("SELECT id FROM users WHERE NOT removed ORDER BY id")]
        connection.execute("UPDATE users SET key = ? WHERE id = ?", (KEY, users[5]))
        connection.execute("UPDATE users SET key = ? WHERE id = ?", (BAD_KEY, users[6]))
        for number, value in ((1, HASH), (2, PLAIN), (4, REFUSED_HASH)):
            connection.execute("UPDATE admins SET hashed_password = ? WHERE id = ?", (value, number * 3))


def left_on_disk(folder: Path) -> Iterator[tuple[str, str]]:
    """Every file of the data directory but those that are the operator's own secrets, and the source."""
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in ("connections.yaml", "hmac.key", "panel.db"):
            yield str(path.relative_to(folder)), path.read_bytes().decode("latin-1")


def left_in_database(url: str) -> Iterator[tuple[str, str]]:
    """Every row of every table, as text."""
    names = execute(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert names
    for (name,) in names:
        for (row,) in execute(url, f'SELECT t::text FROM "{name}" t'):
            yield name, row


def with_password(url: str, password: str) -> str:
    assert "postgres:@" in url
    return url.replace("postgres:@", f"postgres:{password}@")


@pytest.fixture
def settings(new_database: Callable[[], str], tmp_path: Path) -> Settings:
    target = new_database()
    create_target_schema(target)
    for name in ("sources", "mappings"):
        (tmp_path / name).mkdir()
    generate_legacy_panel(tmp_path / "sources" / "panel.db", users=240, admins=6)
    plant(tmp_path / "sources" / "panel.db")
    mapping = mapping_path().read_text().replace("max_quarantine_ratio: 0.1", "max_quarantine_ratio: 0.9")
    (tmp_path / "mappings" / "panel.yaml").write_text(mapping)
    named = target.replace("+asyncpg", "+psycopg2").replace(
        "postgres:@", f"postgres:{CONNECTIONS['target']}@"
    )
    (tmp_path / "connections.yaml").write_text(yaml.safe_dump({"targets": {"successor": named}}))
    return Settings(
        database_url=with_password(new_database(), CONNECTIONS["events"]),
        dagster_database_url=new_database().replace("+asyncpg", "+psycopg2"),
        data_dir=tmp_path,
        connections_file=tmp_path / "connections.yaml",
        hmac_secret=HMAC,
    )


async def test_no_planted_secret_is_found_in_anything_that_is_left(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    on_target(
        settings, f"ALTER TABLE admins ADD CONSTRAINT refused CHECK (hashed_password <> '{REFUSED_HASH}')"
    )
    answers: list[tuple[str, str]] = []
    async with serving(event_service.create_app(settings)) as client:

        async def call(method: str, path: str, json: Any = None) -> dict[str, Any]:
            response = await client.request(method, path, json=json)
            answers.append((path, response.text))
            return response.json() if "json" in response.headers["content-type"] else {}

        names = {"mapping": "panel", "source": "panel.db", "target": "successor"}
        planned = await call("POST", "/migrations", json={**names, "dry_run": True})
        assert (await ended(client, str(planned["migration_id"])))["status"] == "completed"
        await call("GET", f"/migrations/{planned['migration_id']}")
        await call("POST", "/migrations", json={**names, "migration_id": "m-1"})
        row = await ended(client, "m-1")
        assert row["status"] == "completed", row
        on_target(settings, f"UPDATE admins SET hashed_password = '{PLAIN}' WHERE id = 1")
        await call("POST", "/migrations/m-1/verify")
        assert await eventually(client, "m-1", "verified") is False
        quarantine = (await call("GET", "/migrations/m-1/quarantine"))["quarantine"]
        assert {"hash", "pattern", "check"} <= {entry["rule"] for entry in quarantine}
        await call("POST", "/migrations/m-1/quarantine/retry")
        await ended(client, "m-1")
        await call("POST", "/migrations/m-1/rollback", json={"force": True})
        assert (await ended(client, "m-1"))["status"] == "rolled_back"
        for path in ("", "/m-1", "/m-1/report", "/m-1/report.html", "/m-1/quarantine", "/m-1/stats"):
            await call("GET", f"/migrations{path}")
        for path in ("/events?limit=1000", "/users/migrations", "/admins/migrations", "/health"):
            await call("GET", path)
    assert settings.database_url is not None
    assert settings.dagster_database_url is not None
    places = [
        *(("answer to " + path, body) for path, body in answers),
        *(("log", record.getMessage()) for record in caplog.records),
        *left_in_database(settings.database_url),
        *left_in_database(settings.dagster_database_url),
        *left_on_disk(settings.data_dir),
    ]
    hits = {(place, secret) for place, found in places for secret in secrets() if secret in found}
    assert hits == set()
    staged = {path.parent.parent.name for path in settings.data_dir.rglob("*.arrow")}
    assert staged <= {"quarantine"}, "compressed, a staged value would not be found by its text"
    assert {"events", "states", "event_logs", "runs"} <= {place for place, _ in places}
    assert any("hmac-sha256:" in found for place, found in places if place == "events")
