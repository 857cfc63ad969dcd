"""Process models over every storage: one subject, all of them, and what is new, in memory that is bounded."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventsourcing import EventStore, NotFoundError, RecordedEvent
from eventsourcing.catalogue import MigrationFailedEvent, RollbackCompletedEvent, RollbackInitiatedEvent
from eventsourcing.events import BaseEvent
from eventsourcing.process_checks import Watcher, check_process, check_processes
from eventsourcing.process_machine import Walk
from eventsourcing.process_models import MIGRATION, STRAIGHT, ProcessModel, optional, sequence, within
from eventsourcing.testing import a_migration

START = datetime(2026, 1, 1, tzinfo=UTC)
ORDER = ProcessModel(
    "order",
    sequence(
        "order.placed",
        optional(within("order.changed", hours=1)),
        within("order.paid", hours=1),
        "order.sent",
    ),
    aggregate_types=("order",),
    beside=("note",),
    side_streams=("notes",),
    ignored=frozenset({"note.written"}),
)


def an_event(aggregate_id: str, event_type: str, *, hours: float = 0, kind: str = "order") -> BaseEvent:
    return BaseEvent(
        event_type=event_type,
        aggregate_id=aggregate_id,
        aggregate_type=kind,
        timestamp=START + timedelta(hours=hours),
        data={},
    )


async def test_one_subject_whole_open_and_broken(store: EventStore) -> None:
    await store.append_events(a_migration("good"))
    whole = await check_process(store, MIGRATION, "good")
    assert (whole["is_valid"], whole["status"], whole["events"]) == (True, "complete", 6)
    assert whole["expected_next"] == ["migration.failed", "rollback.initiated"]
    started, _, transformed, *_ = a_migration("bad")
    stored = await store.append_events([started, transformed])
    broken = await check_process(store, MIGRATION, "bad")
    assert (broken["is_valid"], broken["status"]) == (False, "broken")
    violation = broken["violation"]
    assert (violation["reason"], violation["actual"]) == ("unexpected", "data.transformed")
    assert (violation["subject"], violation["aggregate_id"]) == ("bad", "bad")
    assert (violation["event_version"], violation["position"]) == (2, stored[1].position)
    assert violation["event_id"] == stored[1].event_id
    assert "data.extracted" in violation["expected"]
    with pytest.raises(NotFoundError):
        await check_process(store, MIGRATION, "nobody")


async def test_a_rollback_is_read_with_its_migration(store: EventStore) -> None:
    events = a_migration("m-1")
    await store.append_events(events)
    begun = RollbackInitiatedEvent(
        rollback_id="m-1:rollback-1", migration_id="m-1", reason="r", rollback_scope={}
    )
    ended = RollbackCompletedEvent(
        rollback_id="m-1:rollback-1", migration_id="m-1", rollback_stats={}, success=True
    )
    await store.append_event(begun)
    assert (await check_process(store, MIGRATION, "m-1"))["status"] == "open"
    await store.append_event(ended)
    assert (await check_process(store, MIGRATION, "m-1:rollback-1"))["status"] == "complete"
    assert (await check_process(store, STRAIGHT, "m-1"))["is_valid"]
    failed = MigrationFailedEvent(migration_id="m-1", error_message="late", error_details={})
    await store.append_event(failed)
    assert not (await check_process(store, STRAIGHT, "m-1"))["is_valid"]


async def test_what_is_late_and_what_is_overdue(store: EventStore) -> None:
    await store.append_events([an_event("late", "order.placed"), an_event("late", "order.paid", hours=2)])
    await store.append_events([an_event("missing", "order.placed")])
    late = await check_process(store, ORDER, "late")
    assert late["violation"]["reason"] == "late"
    soon, later = START + timedelta(minutes=59), START + timedelta(minutes=61)
    assert (await check_process(store, ORDER, "missing", now=soon))["is_valid"]
    assert (await check_process(store, ORDER, "missing", now=later))["violation"]["reason"] == "overdue"
    summary = await check_processes(store, ORDER, now=later)
    assert {violation.subject: violation.reason for violation in summary.violations} == {
        "late": "late",
        "missing": "overdue",
    }


def orders(seed: int, count: int = 60) -> list[BaseEvent]:
    """Orders in a jumble, most of them well, each stream in its own order, with notes beside."""
    rng = random.Random(seed)
    lanes: list[list[BaseEvent]] = []
    for number in range(count):
        name = f"order-{number}"
        types = ["order.placed", "order.changed", "order.paid", "order.sent"]
        if rng.random() < 0.4:
            rng.shuffle(types)
        types = types[: rng.randint(1, 4)]
        hours = rng.choice([0.1, 0.4, 1.5])
        lanes.append([an_event(name, each, hours=place * hours) for place, each in enumerate(types)])
        if rng.random() < 0.3:
            lanes.append([an_event(f"{name}:notes", rng.choice(["note.written", "note.burnt"]), kind="note")])
        if rng.random() < 0.2:
            lanes.append([an_event(f"other-{number}", "order.paid", kind="elsewhere")])
    mixed: list[BaseEvent] = []
    while lanes:
        lane = rng.choice(lanes)
        mixed.append(lane.pop(0))
        lanes = [each for each in lanes if each]
    return mixed


def naive(events: list[RecordedEvent], now: datetime) -> dict[str, tuple[str, int]]:
    """The violations by walking every subject on its own, all of them in memory."""
    found: dict[str, tuple[str, int]] = {}
    for subject in {ORDER.subject_of(event.aggregate_id) for event in events}:
        walk = Walk(ORDER, subject)
        for event in events:
            if ORDER.subject_of(event.aggregate_id) == subject and event.aggregate_type != "elsewhere":
                walk.take(event)
        violation = walk.violation or walk.overdue(now)
        if walk.within and violation:
            found[subject] = (violation.reason, violation.position)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("walks_at_most", [1, 7, 1000])
async def test_all_subjects_in_bounded_memory(store: EventStore, seed: int, walks_at_most: int) -> None:
    stored = await store.append_events(orders(seed))
    now = START + timedelta(days=1)
    summary = await check_processes(store, ORDER, now=now, walks_at_most=walks_at_most)
    found = {violation.subject: (violation.reason, violation.position) for violation in summary.violations}
    assert found == naive(stored, now)
    assert summary.broken == len(found) == len(summary.violations) > 0
    assert summary.subjects == len({e.aggregate_id for e in stored if e.aggregate_type == "order"})


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_new_is_told_once(store: EventStore, seed: int) -> None:
    """As the sensor asks: a new watcher for each window, which remembers only how far it had come."""
    stored = await store.append_events(orders(seed))
    whole: list[Any] = []
    with Watcher(store, ORDER) as watcher:
        whole = [violation async for violation in watcher.violations(after=0, to=stored[-1].position)]
    rng, after, told = random.Random(seed), 0, []
    while after < stored[-1].position:
        to = min(after + rng.randint(1, 9), stored[-1].position)
        with Watcher(store, ORDER) as watcher:
            told += [violation async for violation in watcher.violations(after=after, to=to)]
        after = to
    assert told == whole
