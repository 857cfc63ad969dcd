"""Backfill: history is appended at its dates, once, and not at all when a row of it is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from eventsourcing import (
    BackfillRefusedError,
    BaseEvent,
    DuplicateEventError,
    EventBus,
    EventBusConfig,
    EventStore,
    InvalidEventError,
    RecordedEvent,
    UserMigratedEvent,
)
from eventsourcing.backfill import BACKFILLS
from eventsourcing.storage.base import Appended
from eventsourcing.storage.memory import InMemoryStorage
from eventsourcing.testing import InMemoryHandler
from tests.factories import NOON, draft
from tests.seats import own_registry, release
from tests.waiting import until

__all__ = ["own_registry"]

Row = dict[str, Any]


def user(number: int, day: int = 1, **changes: Any) -> Row:
    """A row of a file: a user who was migrated on a day of May 2024."""
    return {
        "event_type": "user.migrated",
        "aggregate_id": f"user-{number}",
        "aggregate_type": "user",
        "timestamp": f"2024-05-{day:02}T08:00:00+02:00",
        "data": {"username": f"u{number}", "source_data": {"id": number}, "target_data": {}},
        **changes,
    }


def as_drafts(rows: list[Row]) -> list[BaseEvent]:
    return [
        UserMigratedEvent(
            user_id=row["aggregate_id"], timestamp=datetime.fromisoformat(row["timestamp"]), **row["data"]
        )
        for row in rows
    ]


def as_frame(rows: list[Row]) -> pl.DataFrame:
    dates = [datetime.fromisoformat(row["timestamp"]).astimezone(UTC) for row in rows]
    return pl.DataFrame(rows).with_columns(timestamp=pl.Series(dates))


FORMS: dict[str, Callable[[list[Row]], Any]] = {
    "rows": list,
    "drafts": as_drafts,
    "frame": as_frame,
    "lazy frame": lambda rows: as_frame(rows).lazy(),
}


async def manifest(store: EventStore) -> dict[str, Any]:
    async with store.storage.transaction() as states:
        found = await states.get(BACKFILLS, "history")
    assert isinstance(found, dict)
    return found


async def everything(store: EventStore) -> list[RecordedEvent]:
    return [event async for event in store.get_all_events()]


async def refused(store: EventStore, rows: Any, **options: Any) -> BackfillRefusedError:
    before = await everything(store)
    with pytest.raises(BackfillRefusedError) as caught:
        await store.backfill(rows, name="history", **options)
    assert await everything(store) == before
    return caught.value


@pytest.mark.parametrize("form", ["rows", "drafts", "frame", "lazy frame"])
async def test_events_stand_at_their_dates_in_the_order_of_their_dates(store: EventStore, form: str) -> None:
    rows = [user(1, day=3), user(2, day=1), user(3, day=2), user(1, day=2), user(2, day=1, data=other("b"))]
    done = await store.backfill(FORMS[form](rows), name="history")
    stored = await everything(store)
    assert [(e.aggregate_id, e.timestamp.day, e.event_version) for e in stored] == [
        ("user-2", 1, 1),
        ("user-2", 1, 2),
        ("user-3", 2, 1),
        ("user-1", 2, 1),
        ("user-1", 3, 2),
    ]
    for event in stored:
        assert event.timestamp.hour == 6
        assert event.data["migrated_at"] == event.timestamp.isoformat().replace("+00:00", "Z")
        assert event.metadata == {"backfilled": True}
        assert event.recorded_at > datetime(2026, 1, 1, tzinfo=UTC)
        assert event.event_id.version == 8
    assert (done.events, done.appended, done.repeated) == (5, 5, 0)
    assert (done.first, done.last) == (stored[0].timestamp, stored[-1].timestamp)
    assert done.completed_at is not None


def other(name: str) -> Row:
    return {"username": name, "source_data": {}, "target_data": {}}


@pytest.mark.parametrize("form", ["rows", "drafts", "frame"])
async def test_a_second_run_appends_nothing(store: EventStore, form: str) -> None:
    rows = [user(n, day=n) for n in range(1, 8)]
    first = await store.backfill(FORMS[form](rows), name="history")
    before = await everything(store)
    again = await store.backfill(FORMS[form](rows[::-1]), name="history")
    assert (again.events, again.appended, again.started_at) == (7, 0, first.started_at)
    assert await everything(store) == before


async def test_the_manifest_is_kept_under_its_name(store: EventStore) -> None:
    done = await store.backfill([user(1), user(2), user(1)], name="history")
    row = await manifest(store)
    assert (row["events"], row["repeated"], row["appended"]) == (2, 1, 2)
    assert datetime.fromisoformat(row["completed_at"]) == done.completed_at
    assert (await store.backfill([], name="nothing")).events == 0


class _DyingStorage(InMemoryStorage):
    """Loses the connection after some appends."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 2

    async def append(self, events: Any) -> Appended:
        if not self.left:
            raise OSError
        self.left -= 1
        return await super().append(events)


async def test_a_backfill_that_was_cut_off_is_completed_by_calling_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eventsourcing.backfill.CHUNK", 3)
    rows = [user(n % 4, day=1 + n) for n in range(11)]
    whole = EventStore(use_memory=True)
    await whole.backfill(rows, name="history")
    storage = _DyingStorage()
    store = EventStore(storage=storage)
    with pytest.raises(OSError):  # noqa: PT011 - the loss itself, which has no text
        await store.backfill(rows, name="history")
    assert len(await everything(store)) == 6
    assert (await manifest(store))["completed_at"] is None
    storage.left = 100
    assert (await store.backfill(rows, name="history")).appended == 5
    assert [comparable(event) for event in await everything(store)] == [
        comparable(event) for event in await everything(whole)
    ]


def comparable(event: RecordedEvent) -> dict[str, Any]:
    return event.model_dump(exclude={"recorded_at"})


async def test_ids_follow_from_what_a_row_says_and_from_the_name(store: EventStore) -> None:
    await store.backfill([user(1), user(2)], name="history")
    await store.backfill([user(2), user(3)], name="history")
    assert len(await everything(store)) == 3
    await store.backfill([user(2)], name="another")
    assert len(await everything(store)) == 4


SOON = (datetime.now(UTC) + timedelta(days=2)).isoformat()


async def test_what_is_no_event_at_all_is_named(store: EventStore) -> None:
    error = await refused(store, [user(1), 17, user(2)])
    assert error.faults == ("row 2: int is no event",)
    with pytest.raises(InvalidEventError, match="note: not a column of events"):
        await store.backfill(as_frame([user(1, note="x")]), name="history")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"timestamp": None}, "timestamp: is missing"),
        ({"timestamp": ""}, "timestamp: is missing"),
        ({"timestamp": "2024-05-01T08:00:00"}, "timestamp: names no time zone"),
        ({"timestamp": "2024-05-01"}, "timestamp: names no time zone"),
        ({"timestamp": "yesterday"}, "timestamp: is no date and time as in RFC 3339"),
        (
            {"timestamp": "0001-01-01T00:00:00+02:00"},
            "timestamp: the moment lies outside the years 1 to 9999",
        ),
        ({"timestamp": 1714543200}, "timestamp: is no date and time"),
        ({"timestamp": date(2024, 5, 1)}, "timestamp: is no date and time"),
        ({"timestamp": SOON}, "timestamp: lies in the future"),
        ({"event_type": "user.arrived"}, "event_type: not a registered event type"),
        ({"event_type": None}, "event_type: not a registered event type"),
        ({"aggregate_id": None}, "aggregate_id: Field required"),
        ({"aggregate_id": "a\x01b"}, "aggregate_id: Value error, must not contain control characters"),
        ({"data": {"username": "u"}}, "data.source_data: Field required"),
        ({"data": "{"}, "data: is not JSON"),
        ({"data": "[]"}, "data: must be an object"),
        ({"metadata": "1"}, "metadata: must be an object"),
        ({"event_version": 3}, "event_version: follows from the dates; leave it out"),
        ({"event_id": "no"}, "event_id: Input should be a valid UUID"),
        ({"user_name": "u"}, "user_name: not a field of an event"),
    ],
)
async def test_a_row_that_is_wrong_is_named_and_nothing_is_appended(
    store: EventStore, changes: Row, fault: str
) -> None:
    error = await refused(store, [user(1), user(2, **changes), user(3)])
    [named] = error.faults
    assert named.startswith(f"row 2: {fault}")
    assert (error.count, error.rows) == (1, 3)
    assert str(error).startswith("1 fault in 3 rows; nothing was appended\nrow 2: ")
    async with store.storage.transaction() as states:
        assert await states.get(BACKFILLS, "history") is None


async def test_all_rows_that_are_wrong_are_counted_and_the_first_hundred_named(store: EventStore) -> None:
    error = await refused(store, [user(n, timestamp=None if n % 2 else SOON) for n in range(1, 251)])
    assert (error.count, error.rows, len(error.faults)) == (250, 250, 100)
    assert error.faults[:2] == ("row 1: timestamp: is missing", "row 2: timestamp: lies in the future")
    assert str(error).endswith("\nand 150 more")


async def test_a_draft_without_a_date_of_its_own_is_refused_and_one_in_the_future_too(
    store: EventStore,
) -> None:
    undated = UserMigratedEvent(user_id="user-1", username="u", source_data={}, target_data={})
    error = await refused(store, [draft(timestamp=NOON), undated, draft(timestamp=SOON)])
    assert error.faults == ("row 2: timestamp: is missing", "row 3: timestamp: lies in the future")


async def test_dates_without_a_zone_are_taken_in_the_zone_that_the_caller_names(store: EventStore) -> None:
    row = user(1, timestamp="2024-05-01T08:00:00")
    await store.backfill([row], name="history", zone=ZoneInfo("Europe/Berlin"))
    naive = as_frame([user(2)]).with_columns(pl.col("timestamp").dt.replace_time_zone(None))
    assert (await refused(store, naive)).faults == ("row 1: timestamp: names no time zone",)
    await store.backfill(naive, name="history", zone=UTC)
    assert [event.timestamp.hour for event in await everything(store)] == [6, 6]


async def test_a_payload_that_states_a_moment_keeps_it(store: EventStore) -> None:
    data = {**other("u"), "migrated_at": "2020-01-01T00:00:00Z"}
    await store.backfill([user(1, data=data), user(2, data={**data, "migrated_at": None})], name="history")
    assert [event.data["migrated_at"] for event in await everything(store)] == [
        "2020-01-01T00:00:00Z",
        "2024-05-01T06:00:00Z",
    ]


async def test_in_a_frame_of_several_types_each_keeps_its_own_fields_only(store: EventStore) -> None:
    failed = {"error_message": "no", "error_details": {"code": 1}}
    rows = [
        user(1),
        user(2, event_type="migration.failed", aggregate_id="m-1", aggregate_type="migration", data=failed),
    ]
    await store.backfill(as_frame(rows), name="history")
    assert [set(event.data) for event in await everything(store)] == [
        {"username", "source_data", "target_data", "migrated_at"},
        {"error_message", "error_details", "failed_at"},
    ]


async def test_an_aggregate_with_later_events_is_refused_unless_merged(store: EventStore) -> None:
    await store.append_events(as_drafts([user(1, day=10), user(2, day=1)]))
    rows = [user(2, day=5), user(3, day=5), user(1, day=9), user(1, day=11)]
    error = await refused(store, rows)
    assert error.faults == ("row 3: aggregate_id: holds later events; `merge` appends behind them",)
    done = await store.backfill(rows, name="history", merge=True)
    assert done.appended == 4
    assert [event.timestamp.day for event in await store.get_events("user-1")] == [10, 9, 11]
    assert (await store.backfill(rows, name="history")).appended == 0


async def test_planted_without_the_look_at_later_events_they_are_overtaken(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing_later(_aggregates: Any) -> dict[str, datetime]:
        return {}

    await store.append_events(as_drafts([user(1, day=10)]))
    monkeypatch.setattr(store.storage, "latest_timestamps", nothing_later)
    await store.backfill([user(1, day=9)], name="history")
    assert [event.timestamp.day for event in await store.get_events("user-1")] == [10, 9]


async def test_an_id_of_the_rows_is_kept_and_names_one_event_only(store: EventStore) -> None:
    event_id = "0190f3a0-0000-7000-8000-000000000001"
    row = user(1, event_id=event_id)
    error = await refused(store, [row, user(2, event_id=event_id), user(1, event_id=event_id)])
    assert error.faults == ("row 2: event_id: names another event in an earlier row",)
    await store.backfill([row], name="history")
    assert [str(event.event_id) for event in await everything(store)] == [event_id]
    assert (await store.backfill([row], name="again")).appended == 0
    with pytest.raises(DuplicateEventError):
        await store.backfill([user(5), user(1, day=2, event_id=event_id)], name="history")
    assert len(await everything(store)) == 1


async def test_nobody_outside_is_told_of_history(store: EventStore) -> None:
    class Outside(InMemoryHandler):
        replayable = False

    outside, inside = Outside(), InMemoryHandler()
    async with EventBus(EventBusConfig(), store=store) as bus:
        await bus.subscribe([], outside, consumer_group="outside", start="beginning")
        await bus.subscribe([], inside, consumer_group="inside")
        await store.backfill([user(1), user(2)], name="history")
        await store.append_events(as_drafts([user(3)]))
        await until(lambda: len(inside.events) == 3 and bool(outside.events))
    assert [event.aggregate_id for event in outside.events] == ["user-3"]
    assert {event.aggregate_id for event in inside.events} == {"user-1", "user-2", "user-3"}


async def test_an_old_payload_that_says_its_version_is_brought_to_the_newest(
    store: EventStore, own_registry: None
) -> None:
    seat = release(3)
    row = {
        "event_type": seat.declared_type,
        "aggregate_id": "seat-1",
        "timestamp": "2024-05-01T08:00:00Z",
        "data": {"passenger": "Ada Lovelace"},
        "metadata": {"schema_version": 1, "by": "import"},
    }
    await store.backfill([row], name="history")
    [event] = await everything(store)
    assert event.data["family_name"] == "Lovelace"
    assert event.metadata == {"schema_version": 3, "by": "import", "backfilled": True}


async def test_a_backfill_that_is_cancelled_while_it_checks_ends_at_once() -> None:
    taken = 0

    def endless() -> Iterator[Row]:
        nonlocal taken
        while True:
            taken += 1
            yield user(taken)

    store = EventStore(use_memory=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await store.backfill(endless(), name="history")
    await asyncio.sleep(0.2)
    before = taken
    await asyncio.sleep(0.2)
    assert taken == before


async def test_progress_is_told(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventsourcing.backfill.CHUNK", 2)
    told: list[tuple[str, int, int]] = []
    await store.backfill(
        [user(n) for n in range(5)], name="history", on_progress=lambda *stage: told.append(stage)
    )
    assert told == [("checked", 5, 5), ("appended", 2, 5), ("appended", 4, 5), ("appended", 5, 5)]
