"""Each index and the queries that it is there for: a query that stops using it fails here.

Plans are those that the storage's sessions make, of an empty table and of one with statistics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from eventsourcing import EventQuery, EventStore
from eventsourcing.storage.base import LOST_POSITIONS
from eventsourcing.storage.fragments import page
from eventsourcing.storage.postgres import SESSION
from eventsourcing.storage.statements import statements

ROWS = 40_000
BEGAN = datetime(2024, 1, 1, tzinfo=UTC)
CORRELATION = UUID("0197b5c4-0000-7000-8000-00000000000a")
EVENTS = statements("events")

FILL = """
INSERT INTO events (event_id, event_type, aggregate_id, aggregate_type, event_version, "timestamp",
                    correlation_id, metadata, data)
SELECT gen_random_uuid(),
       CASE n % 1000 WHEN 0 THEN 'rare.happened' WHEN 1 THEN 'rare.ended' ELSE 'common.happened' END,
       'stream-' || n / 4, CASE WHEN n % 1000 < 2 THEN 'rare' ELSE 'common' END, n % 4 + 1,
       $1::timestamptz + n * interval '1 second',
       CASE n % 500 WHEN 0 THEN $2::uuid ELSE gen_random_uuid() END,
       '{}', '{"payload": "of some length, as payloads have"}'
FROM generate_series(0, $3::integer - 1) AS n
"""

RARE = ("rare.happened", "rare.ended")


QUERIES: dict[str, tuple[str, EventQuery]] = {
    "all events, on from a position": ("events_pkey", EventQuery(after_position=20_000)),
    "all events, backwards": ("events_pkey", EventQuery(backwards=True)),
    "a window of positions": ("events_pkey", EventQuery(after_position=20_000, to_position=20_500)),
    "one event": ("events_event_id_key", EventQuery(event_id=uuid4())),
    "a stream": ("events_stream_version_key", EventQuery(aggregate_id="stream-77")),
    "a stream between versions": (
        "events_stream_version_key",
        EventQuery(aggregate_id="stream-77", from_version=2, to_version=3),
    ),
    "a stream's events of a type": (
        "events_stream_version_key",
        EventQuery(aggregate_id="stream-77", event_types=RARE),
    ),
    "a type": ("events_type_position", EventQuery(event_types=("rare.happened",))),
    "several types": ("events_type_position", EventQuery(event_types=RARE)),
    "several types, backwards": ("events_type_position", EventQuery(event_types=RARE, backwards=True)),
    "an aggregate type, by its event types": (
        "events_type_position",
        EventQuery(aggregate_types=("rare",), event_types=RARE),
    ),
    "a correlation": ("events_correlation_position", EventQuery(correlation_id=CORRELATION)),
    "a correlation's events of a type": (
        "events_correlation_position",
        EventQuery(correlation_id=CORRELATION, event_types=RARE),
    ),
}
"""What is asked -> the index that answers, and the query."""


@pytest.fixture
async def session(postgres: EventStore, administrator: asyncpg.Connection) -> asyncpg.Connection:
    """A connection with the settings of the storage's own, to an empty store."""
    for name, value in SESSION.items():
        await administrator.execute(f"SET {name} = {value}")
    return administrator


@pytest.fixture(params=["empty", "filled"])
async def table(request: pytest.FixtureRequest, session: asyncpg.Connection) -> asyncpg.Connection:
    """The same, empty or with enough events for an index to pay."""
    if request.param == "filled":
        await session.execute(FILL, BEGAN, CORRELATION, ROWS)
        await session.execute("VACUUM ANALYZE events")
    return session


async def plan(connection: asyncpg.Connection, sql: str, values: list[Any]) -> Any:
    """The plan of a prepared statement. Values are plain here, so that they can stand in the text."""
    await connection.execute(f"PREPARE asked AS {sql}")
    given = f"({', '.join(map(literal, values))})" if values else ""
    explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE asked {given}")
    await connection.execute("DEALLOCATE asked")
    return json.loads(explained)


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    return "'{" + ",".join(value) + "}'" if isinstance(value, list) else f"'{value}'"


def indexes(node: Any) -> Iterator[str]:
    """The names of the indexes in a plan, and the tables that it reads without one."""
    if isinstance(node, list):
        for inner in node:
            yield from indexes(inner)
    elif isinstance(node, dict):
        if node.get("Node Type") == "Seq Scan":
            yield f"all of {node['Relation Name']}"
        elif "Index Name" in node:
            yield node["Index Name"]
        for inner in node.values():
            yield from indexes(inner)


async def test_every_query_walks_its_index(table: asyncpg.Connection) -> None:
    wrong = {}
    for asked, (index, query) in QUERIES.items():
        explained = await plan(table, *page(query, cursor=None, size=100))
        merged = asked.startswith(("several types", "an aggregate type"))
        if (
            set(indexes(explained)) != {index}
            or "'Sort'" in str(explained)
            or ("'Merge Append'" in str(explained)) != merged
        ):
            wrong[asked] = explained
    assert wrong == {}


async def test_types_without_branches_lose_their_index(session: asyncpg.Connection) -> None:
    """The fault that the branches cure: the checker must see it."""
    sql = f"{EVENTS['select_events']} WHERE event_type = ANY($1::text[]) ORDER BY position LIMIT $2"
    assert set(indexes(await plan(session, sql, [list(RARE), 100]))) != {"events_type_position"}


async def test_types_without_their_selectivity_lose_their_index(session: asyncpg.Connection) -> None:
    """The same for the numbers that the schema gives to the planner."""
    await session.execute("ALTER TABLE events ALTER COLUMN event_type RESET (n_distinct)")
    await session.execute(FILL, BEGAN, CORRELATION, ROWS)
    await session.execute("VACUUM ANALYZE events")
    sql, values = page(EventQuery(event_types=RARE), cursor=None, size=100)
    assert set(indexes(await plan(session, sql, values))) != {"events_type_position"}


STATEMENTS: dict[str, list[Any]] = {
    "append_one": [uuid4(), "a.b", "stream-9", "a", 0, BEGAN, None, None, "{}", "{}"],
    "stored": [[str(uuid4())]],
    "versions": [["stream-9"]],
    "head": [LOST_POSITIONS.name],
    "horizon": [],
}


async def test_the_statements_around_an_append_read_by_index(table: asyncpg.Connection) -> None:
    used = {
        name: set(indexes(await plan(table, EVENTS[name], values))) for name, values in STATEMENTS.items()
    }
    assert all(used.values())
    assert not [name for name, indexes_used in used.items() if "all of events" in indexes_used]
