"""The statistics of migrations (contract, section 3): the same from any order that keeps each aggregate's.

Every test asks both forms: the handler in memory, and the durable read model.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventsourcing import (
    AdminMigratedEvent,
    BaseEvent,
    DataExtractedEvent,
    DataImportedEvent,
    DataTransformedEvent,
    DataValidatedEvent,
    EventStore,
    MigrationCompletedEvent,
    MigrationFailedEvent,
    MigrationStartedEvent,
    RecordedEvent,
    RollbackCompletedEvent,
    RollbackInitiatedEvent,
    UserMigratedEvent,
    UserRolledBackEvent,
)
from eventsourcing.handlers import MigrationEventHandler
from eventsourcing.readmodels import MIGRATION_STATISTICS_MODEL
from tests.factories import NOON, draft, recorded

ID = "migration-1"
CORRELATION = UUID(int=77)


def started(migration_id: str = ID, **fields: Any) -> MigrationStartedEvent:
    return MigrationStartedEvent(
        migration_id=migration_id,
        source_config={"host": "old"},
        target_config={"host": "new"},
        timestamp=NOON,
        **fields,
    )


def user(number: int, **fields: Any) -> UserMigratedEvent:
    return UserMigratedEvent(
        user_id=f"user-{number}", username="ada", source_data={}, target_data={}, **fields
    )


def completed(**fields: Any) -> MigrationCompletedEvent:
    return MigrationCompletedEvent(
        migration_id=ID, statistics={"users": 2}, duration_seconds=1.5, timestamp=NOON, **fields
    )


def failed(message: str = "boom") -> MigrationFailedEvent:
    return MigrationFailedEvent(
        migration_id=ID, error_message=message, error_details={"code": 1}, timestamp=NOON
    )


def rolled_back(success: bool = True) -> RollbackCompletedEvent:
    return RollbackCompletedEvent(
        rollback_id="rollback-1",
        migration_id=ID,
        rollback_stats={"users": 2},
        success=success,
        timestamp=NOON,
    )


def undoing(reason: str = "wrong") -> RollbackInitiatedEvent:
    return RollbackInitiatedEvent(
        rollback_id="rollback-1", migration_id=ID, reason=reason, rollback_scope={}, timestamp=NOON
    )


def in_order(events: Sequence[BaseEvent]) -> list[RecordedEvent]:
    """The events as a store records them, position by position."""
    versions: dict[str, int] = defaultdict(int)
    stored = []
    for position, event in enumerate(events, start=1):
        versions[event.aggregate_id] += 1
        stored.append(recorded(event, position=position, version=versions[event.aggregate_id]))
    return stored


async def handled(events: Sequence[BaseEvent]) -> MigrationEventHandler:
    handler = MigrationEventHandler()
    for event in events:
        await handler.handle(event)
    return handler


async def statistics(events: Sequence[BaseEvent], migration_id: str = ID) -> dict[str, Any]:
    """What both forms answer; they must agree."""
    async with EventStore(use_memory=True) as store:
        await store.append_events(events)
        await MIGRATION_STATISTICS_MODEL.catch_up(store.storage)
        durable = await MIGRATION_STATISTICS_MODEL.stats(store.storage, migration_id)
        everything = await MIGRATION_STATISTICS_MODEL.all_stats(store.storage)
    handler = await handled(in_order(events))
    assert handler.get_migration_stats(migration_id) == durable
    assert handler.get_all_migration_stats() == everything
    assert everything.get(migration_id, {}) == durable
    return durable


async def test_a_started_migration_has_its_configs_and_counts_of_zero() -> None:
    assert await statistics([started()]) == {
        "status": "started",
        "started_at": "2024-05-01T12:00:00Z",
        "source_config": {"host": "old"},
        "target_config": {"host": "new"},
        "extracted_count": 0,
        "transformed_count": 0,
        "validated_count": 0,
        "imported_count": 0,
        "user_count": 0,
        "admin_count": 0,
        "rolled_back_count": 0,
        "errors": [],
    }


async def test_the_stages_add_up_their_counts() -> None:
    link = {"correlation_id": CORRELATION}
    events: list[BaseEvent] = [
        started(correlation_id=CORRELATION),
        DataExtractedEvent(extraction_id=ID, source_type="sqlite", record_count=10, extraction_stats={}),
        DataExtractedEvent(
            extraction_id="extraction-2", source_type="sqlite", record_count=5, extraction_stats={}, **link
        ),
        DataTransformedEvent(
            transformation_id="t", input_count=15, output_count=14, transformation_stats={}, **link
        ),
        DataValidatedEvent(
            validation_id="v",
            total_records=14,
            valid_records=13,
            invalid_records=1,
            validation_errors=[],
            **link,
        ),
        DataImportedEvent(
            import_id="i", target_type="postgresql", imported_count=12, import_stats={}, **link
        ),
        user(1, **link),
        user(2, **link),
        AdminMigratedEvent(admin_id="admin-1", username="root", source_data={}, target_data={}, **link),
    ]
    stats = await statistics(events)
    counts = ("extracted", "transformed", "validated", "imported", "user", "admin")
    assert [stats[f"{name}_count"] for name in counts] == [15, 14, 13, 12, 2, 1]


async def test_a_completed_migration_keeps_its_final_statistics() -> None:
    stats = await statistics([started(), completed()])
    assert (stats["status"], stats["completed_at"]) == ("completed", "2024-05-01T12:00:00Z")
    assert (stats["duration_seconds"], stats["final_statistics"]) == (1.5, {"users": 2})


async def test_a_failed_migration_keeps_its_error_and_a_list_of_all() -> None:
    stats = await statistics([started(), failed("first"), failed("second")])
    assert stats["status"] == "failed"
    assert (stats["error_message"], stats["error_details"]) == ("second", {"code": 1})
    assert [error["error_message"] for error in stats["errors"]] == ["first", "second"]


async def test_a_migration_resumed_after_a_failure_is_completed() -> None:
    stats = await statistics([started(), failed(), completed()])
    assert stats["status"] == "completed"
    assert len(stats["errors"]) == 1


async def test_a_rollback_shows_how_it_began_and_ended() -> None:
    stats = await statistics([started(), completed(), undoing(), rolled_back()])
    assert stats["status"] == "rolled_back"
    assert stats["rollback_initiated"] == {
        "rollback_id": "rollback-1",
        "reason": "wrong",
        "initiated_at": "2024-05-01T12:00:00Z",
    }
    assert stats["rollback_completed"] == {
        "rollback_id": "rollback-1",
        "success": True,
        "completed_at": "2024-05-01T12:00:00Z",
        "rollback_stats": {"users": 2},
    }


async def test_a_rollback_that_did_not_succeed_leaves_the_status() -> None:
    stats = await statistics([started(), completed(), undoing(), rolled_back(success=False)])
    assert stats["status"] == "completed"
    assert stats["rollback_completed"]["success"] is False


async def test_rolled_back_records_are_counted_beside_the_migrated_ones() -> None:
    undone = UserRolledBackEvent(
        user_id="user-1", rollback_id="rollback-1", migration_id=ID, action="deleted"
    )
    stats = await statistics(
        [started(correlation_id=CORRELATION), user(1, correlation_id=CORRELATION), undone]
    )
    assert (stats["user_count"], stats["rolled_back_count"]) == (1, 1)


async def test_records_are_linked_by_the_started_events_correlation() -> None:
    events = [started(correlation_id=CORRELATION), user(1, correlation_id=CORRELATION), user(2)]
    assert (await statistics(events))["user_count"] == 1


async def test_records_are_linked_by_the_started_events_id() -> None:
    first = started()
    follower = user(2)
    follower.follow(first)
    events = [first, user(1, correlation_id=first.event_id), follower, user(3)]
    assert (await statistics(events))["user_count"] == 2


async def test_both_links_of_one_started_event_hold_and_nothing_counts_twice() -> None:
    first = started(correlation_id=CORRELATION)
    events = [first, user(1, correlation_id=CORRELATION), user(2, correlation_id=first.event_id)]
    assert (await statistics(events))["user_count"] == 2


async def test_records_are_linked_by_the_payloads_migration_id() -> None:
    events = [started(), user(1, migration_id=ID), user(2, migration_id="migration-2")]
    assert (await statistics(events))["user_count"] == 1


async def test_an_event_named_by_payload_and_correlation_counts_once() -> None:
    events = [started(correlation_id=CORRELATION), user(1, migration_id=ID, correlation_id=CORRELATION)]
    assert (await statistics(events))["user_count"] == 1


async def test_events_may_come_before_their_started_event() -> None:
    first = started(correlation_id=CORRELATION)
    events = [
        user(1, correlation_id=CORRELATION),
        user(2, correlation_id=first.event_id),
        user(3, migration_id=ID),
        first,
    ]
    stats = await statistics(events)
    assert (stats["status"], stats["user_count"]) == ("started", 3)


async def test_no_correlation_links_nothing() -> None:
    events = [started(), started("migration-2"), user(1), user(2)]
    assert (await statistics(events))["user_count"] == 0


@pytest.mark.parametrize(
    "unknown", ["", "nobody", "user-1", "extraction-1", ID[:-1], ID + "0", str(CORRELATION)]
)
async def test_an_unknown_id_has_no_statistics(unknown: str) -> None:
    events = [
        started(correlation_id=CORRELATION),
        user(1, correlation_id=CORRELATION),
        DataExtractedEvent(
            extraction_id="extraction-1", source_type="x", record_count=1, extraction_stats={}
        ),
    ]
    assert await statistics(events, unknown) == {}


async def test_migrations_do_not_mix() -> None:
    one, two = started(correlation_id=UUID(int=1)), started("migration-2", correlation_id=UUID(int=2))
    events = [one, two, user(1, correlation_id=UUID(int=1)), user(2, correlation_id=UUID(int=2)), completed()]
    assert (await statistics(events))["status"] == "completed"
    other = await statistics(events, "migration-2")
    assert (other["status"], other["user_count"]) == ("started", 1)


async def test_a_plain_event_with_an_empty_payload_counts_as_nothing() -> None:
    events = [started(), draft(ID, "data.extracted"), draft(ID, "migration.failed")]
    stats = await statistics(events)
    assert (stats["extracted_count"], stats["status"], stats["error_message"]) == (0, "failed", None)


@pytest.mark.parametrize("count", ["12", [], {}, True, None])
async def test_a_plain_event_whose_count_is_no_number_counts_as_nothing(count: Any) -> None:
    events = [started(), draft(ID, "data.extracted", data={"record_count": count})]
    assert (await statistics(events))["extracted_count"] == 0


async def test_the_same_recorded_event_handled_twice_counts_once() -> None:
    events = in_order([started(correlation_id=CORRELATION), user(1, correlation_id=CORRELATION)])
    handler = await handled([*events, *events])
    assert handler.get_migration_stats(ID)["user_count"] == 1


def story() -> list[BaseEvent]:
    """A whole migration and its undoing, in several aggregates, beside another migration."""
    first = started(correlation_id=CORRELATION)
    events: list[BaseEvent] = [
        first,
        DataExtractedEvent(
            extraction_id=ID, source_type="sqlite", record_count=4, extraction_stats={}, timestamp=NOON
        ),
        *(user(n, correlation_id=(CORRELATION, first.event_id)[n % 2], timestamp=NOON) for n in range(4)),
        failed("first"),
        failed("second"),
        completed(),
        undoing(),
        UserRolledBackEvent(
            user_id="user-1", rollback_id="r", migration_id=ID, action="deleted", timestamp=NOON
        ),
        rolled_back(success=False),
        RollbackInitiatedEvent(
            rollback_id="rollback-2",
            migration_id=ID,
            reason="again",
            rollback_scope={},
            timestamp=NOON - timedelta(days=1),
        ),
        RollbackCompletedEvent(
            rollback_id="rollback-2", migration_id=ID, rollback_stats={}, success=True, timestamp=NOON
        ),
        started("migration-2", correlation_id=UUID(int=8)),
        user(9, correlation_id=UUID(int=8), timestamp=NOON),
    ]
    return events


def shuffled(events: Sequence[RecordedEvent], chance: random.Random) -> list[RecordedEvent]:
    """Another order between the aggregates, the same within each."""
    streams: dict[str, list[RecordedEvent]] = defaultdict(list)
    for event in events:
        streams[event.aggregate_id].append(event)
    turns = [event.aggregate_id for event in events]
    chance.shuffle(turns)
    return [streams[name].pop(0) for name in turns]


@settings(max_examples=200, deadline=None)
@given(chance=st.randoms(use_true_random=False))
def test_every_shuffle_that_keeps_each_aggregates_order_gives_the_same_answers(chance: random.Random) -> None:
    events = in_order(story())

    async def answers(order: Sequence[BaseEvent]) -> tuple[Any, ...]:
        handler = await handled(order)
        views = (handler.get_user_migrations(), handler.get_admin_migrations())
        return (handler.get_all_migration_stats(), *views)

    expected = asyncio.run(answers(events))
    assert expected[0][ID]["status"] == "rolled_back"
    assert asyncio.run(answers(shuffled(events, chance))) == expected


async def test_planted_a_fold_that_takes_the_last_event_seen_depends_on_the_order() -> None:
    """Without positions (drafts stand at 0) the last one handled wins: what the positions are for."""
    events = story()
    turned = [
        *(event for event in events if event.aggregate_id != ID),
        *(e for e in events if e.aggregate_id == ID),
    ]
    one, two = (
        (await handled(events)).get_migration_stats(ID),
        (await handled(turned)).get_migration_stats(ID),
    )
    assert one["status"] != two["status"]
