"""The calls that the published documentation shows, made as it makes them, on every storage."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from eventsourcing import (
    AuditEventHandler,
    BaseEvent,
    DebugEventHandler,
    EventBus,
    EventBusConfig,
    EventHandler,
    EventReplay,
    EventReplayConfig,
    EventStore,
    EventStoreConfig,
    EventType,
    MigrationCompletedEvent,
    MigrationEventHandler,
    MigrationStartedEvent,
    NotificationEventHandler,
    UserMigratedEvent,
)
from eventsourcing.catalogue import MIGRATION_SEQUENCE
from eventsourcing.testing import InMemoryNotifications, a_migration


def started(migration_id: str = "migration-123") -> MigrationStartedEvent:
    return MigrationStartedEvent(
        migration_id=migration_id,
        source_config={"host": "old.example.org"},
        target_config={"host": "new.example.org"},
    )


@pytest.fixture
async def migrated(store: EventStore) -> EventStore:
    """A store that holds one finished migration of two users."""
    await store.append_events(a_migration())
    return store


@pytest.fixture
async def replay(migrated: EventStore) -> EventReplay:
    """A replay over that store, with the migration handler."""
    made = EventReplay(migrated)
    made.add_handler(MigrationEventHandler())
    return made


def test_a_base_event_has_exactly_the_published_fields() -> None:
    event = BaseEvent(
        event_type=EventType.USER_MIGRATED,
        aggregate_id="user-1",
        aggregate_type="user",
        correlation_id=uuid4(),
        causation_id=uuid4(),
        metadata={"operator": "me"},
        data={"username": "ann"},
    )

    assert list(BaseEvent.model_fields) == [
        "event_id",
        "event_type",
        "aggregate_id",
        "aggregate_type",
        "event_version",
        "timestamp",
        "correlation_id",
        "causation_id",
        "metadata",
        "data",
    ]
    assert isinstance(event.event_id, UUID)
    assert event.timestamp.tzinfo is not None


async def test_a_store_is_made_from_a_database_url(database_url: str) -> None:
    assert database_url.startswith("postgresql+asyncpg://")
    event_store = EventStore(EventStoreConfig(database_url=database_url))

    await event_store.append_event(started())

    assert len(await event_store.get_events("migration-123")) == 1
    await event_store.close()


async def test_a_store_in_memory_is_one_argument() -> None:
    event_store = EventStore(use_memory=True)

    assert (await event_store.append_event(started())).event_version == 1


async def test_one_event_and_a_batch_are_stored(store: EventStore) -> None:
    single = await store.append_event(started())
    batch = await store.append_events(
        [started("migration-1"), started("migration-2"), started("migration-3")]
    )

    assert single.event_version == 1
    assert [event.aggregate_id for event in batch] == ["migration-1", "migration-2", "migration-3"]


async def test_events_are_queried_by_aggregate_type_and_correlation_and_streamed(store: EventStore) -> None:
    correlation_id = uuid4()
    first = await store.append_event(started())
    second = await store.append_event(
        MigrationCompletedEvent(
            migration_id="migration-123", statistics={}, duration_seconds=1.0, correlation_id=correlation_id
        )
    )

    assert await store.get_events("migration-123") == [first, second]
    assert await store.get_events_by_type(EventType.MIGRATION_STARTED) == [first]
    assert await store.get_events_by_correlation_id(correlation_id) == [second]
    assert [event async for event in store.get_all_events()] == [first, second]


def test_a_bus_is_made_from_its_configuration() -> None:
    config = EventBusConfig(
        kafka_bootstrap_servers="localhost:9092",
        topic_prefix="migration",
        retry_attempts=3,
        retry_delay=1.0,
        enable_dead_letter_queue=True,
    )

    assert isinstance(EventBus(config), EventBus)


async def test_one_event_and_a_batch_are_published() -> None:
    seen: list[BaseEvent] = []
    event_bus = EventBus(use_memory=True)

    async def remember(event: BaseEvent) -> None:
        seen.append(event)

    await event_bus.subscribe([], remember)
    await event_bus.publish(started())
    await event_bus.publish_batch([started("migration-1"), started("migration-2")])

    assert [event.aggregate_id for event in seen] == ["migration-123", "migration-1", "migration-2"]


async def test_a_function_subscribes_to_types_in_a_consumer_group() -> None:
    begun: list[str] = []
    event_bus = EventBus(use_memory=True)

    async def watch(event: BaseEvent) -> None:
        if event.event_type == EventType.MIGRATION_STARTED:
            begun.append(event.aggregate_id)

    await event_bus.subscribe(
        [EventType.MIGRATION_STARTED, EventType.MIGRATION_COMPLETED],
        watch,
        consumer_group="migration-processor",
    )
    async with event_bus:
        await event_bus.publish_batch(a_migration())

    assert begun == ["migration-123"]


async def test_the_migration_handler_answers_with_statistics_and_users() -> None:
    handler = MigrationEventHandler()
    for event in a_migration(users=2):
        await handler.handle(event)

    stats = handler.get_migration_stats("migration-123")
    users = handler.get_user_migrations()

    assert stats["status"] == "completed"
    assert stats["started_at"].endswith("Z")
    assert (stats["user_count"], stats["admin_count"]) == (2, 0)
    assert stats["extracted_count"] == stats["transformed_count"] == stats["imported_count"] == 2
    assert users["user-migration-123-1"]["username"] == "user1"
    assert users["user-migration-123-1"]["migrated_at"].endswith("Z")
    assert handler.get_migration_stats("nobody") == {}


async def test_the_notification_handler_tells_a_service_about_the_end() -> None:
    service = InMemoryNotifications()
    handler = NotificationEventHandler(service)

    for event in a_migration():
        if handler.can_handle(event.event_type):
            await handler.handle(event)

    assert [(title, priority) for title, _, _, priority in service.sent] == [
        ("Migration Completed", "normal")
    ]
    assert "migration-123" in service.sent[0][1]


async def test_the_audit_handler_writes_one_line_an_event(caplog: pytest.LogCaptureFixture) -> None:
    audit_logger = logging.getLogger("audit")
    handler = AuditEventHandler(audit_logger)
    event = started()

    with caplog.at_level(logging.INFO, logger="audit"):
        await handler.handle(event)

    (line,) = caplog.messages
    assert line.startswith("AUDIT: ")
    assert event.event_id.hex in line
    assert json.loads(line.removeprefix("AUDIT: "))["aggregate_id"] == "migration-123"


async def test_a_custom_handler_says_what_it_takes_and_is_called_for_it(store: EventStore) -> None:
    class IndexUsers(EventHandler):
        def __init__(self) -> None:
            self.index: dict[str, str] = {}

        def can_handle(self, event_type: str) -> bool:
            return event_type == EventType.USER_MIGRATED

        async def handle(self, event: BaseEvent) -> None:
            self.index[event.aggregate_id] = event.data["username"]

    handler = IndexUsers()
    await store.append_events(a_migration())
    replay = EventReplay(store)
    replay.add_handler(handler)
    await replay.replay_all_events()

    assert handler.index == {"user-migration-123-1": "user1", "user-migration-123-2": "user2"}


async def test_all_events_of_a_window_are_replayed(store: EventStore) -> None:
    handler = MigrationEventHandler()
    for day, migration_id in ((1, "migration-a"), (31, "migration-b")):
        event = started(migration_id)
        event.timestamp = datetime(2023, 1, day, tzinfo=UTC)
        await store.append_event(event)
    replay = EventReplay(store)
    replay.add_handler(handler)

    result = await replay.replay_all_events(
        from_timestamp=datetime(2023, 1, 1),  # noqa: DTZ001 - naive is UTC
        to_timestamp=datetime(2023, 1, 30),  # noqa: DTZ001 - naive is UTC
    )

    assert result.total_events == 1
    assert list(handler.get_all_migration_stats()) == ["migration-a"]


async def test_the_versions_of_an_aggregate_are_replayed(replay: EventReplay) -> None:
    result = await replay.replay_aggregate_events(aggregate_id="migration-123", from_version=1, to_version=10)

    assert result.total_events == 6


async def test_events_are_replayed_by_type(replay: EventReplay) -> None:
    result = await replay.replay_events_by_type(
        event_types=[EventType.USER_MIGRATED, EventType.ADMIN_MIGRATED]
    )

    assert result.total_events == 2


async def test_events_are_replayed_by_correlation(replay: EventReplay, migrated: EventStore) -> None:
    correlation_id = (await migrated.get_events("migration-123"))[0].event_id

    result = await replay.replay_events_by_correlation_id(correlation_id)

    assert result.total_events == 7


async def test_a_replay_takes_its_configuration(migrated: EventStore) -> None:
    config = EventReplayConfig(
        batch_size=100, delay_between_batches=0.1, stop_on_error=False, max_retries=3, retry_delay=1.0
    )
    replay = EventReplay(migrated, config)

    assert (await replay.replay_all_events()).processed_events == 8


async def test_a_result_counts_and_names_its_errors(migrated: EventStore) -> None:
    class Fussy(EventHandler):
        def can_handle(self, event_type: str) -> bool:
            return event_type == EventType.USER_MIGRATED

        async def handle(self, event: BaseEvent) -> None:
            if event.aggregate_id.endswith("-2"):
                raise ValueError("not this one")

    replay = EventReplay(migrated, EventReplayConfig(max_retries=1, retry_delay=0))
    replay.add_handler(Fussy())

    result = await replay.replay_all_events()

    assert (result.total_events, result.processed_events, result.failed_events) == (8, 7, 1)
    assert result.success_rate == 87.5
    assert result.duration >= 0
    (error,) = result.errors
    assert error["error"] == "not this one"
    assert (error["event_type"], error["attempts"]) == ("user.migrated", 2)
    assert str(UUID(error["event_id"])) == error["event_id"]


async def test_a_snapshot_holds_the_state_of_an_aggregate(replay: EventReplay) -> None:
    snapshot = await replay.create_snapshot(aggregate_id="migration-123", up_to_version=50)

    assert {"aggregate_id", "version", "snapshot_time", "replay_result", "state"} <= set(snapshot)
    assert snapshot["version"] == 6
    assert snapshot["state"]["user_count"] == 2
    assert snapshot["state"]["status"] == "completed"


async def test_a_sequence_is_validated_and_its_differences_are_named(replay: EventReplay) -> None:
    valid = await replay.validate_event_sequence(
        aggregate_id="migration-123", expected_sequence=MIGRATION_SEQUENCE
    )
    short = await replay.validate_event_sequence(
        aggregate_id="migration-123", expected_sequence=[*MIGRATION_SEQUENCE[:1], *MIGRATION_SEQUENCE[2:]]
    )

    assert valid["is_valid"]
    assert valid["differences"] == []
    assert not short["is_valid"]
    assert short["differences"][0] == {
        "position": 1,
        "expected": "data.transformed",
        "actual": "data.extracted",
    }
    assert short["differences"][-1] == {"position": 5, "expected": None, "actual": "migration.completed"}


async def test_the_statistics_of_the_store_count_by_type_and_aggregate(migrated: EventStore) -> None:
    stats = await migrated.get_event_stats()

    assert stats["total_events"] == 8
    assert stats["events_by_type"]["user.migrated"] == 2
    assert stats["events_by_aggregate_type"]["migration"] == 2
    assert stats["latest_event_timestamp"].endswith("Z")


async def test_a_flow_is_traced_by_its_correlation(migrated: EventStore) -> None:
    correlation_id = (await migrated.get_events("migration-123"))[0].event_id

    trace = [
        f"{event.timestamp}: {event.event_type} - {event.aggregate_id}"
        for event in await migrated.get_events_by_correlation_id(correlation_id)
    ]

    assert len(trace) == 7
    assert "data.extracted - migration-123" in trace[0]


async def test_a_handler_is_tested_alone() -> None:
    handler = MigrationEventHandler()

    await handler.handle(started("test-id"))

    assert handler.get_migration_stats("test-id")["status"] == "started"


async def test_a_replay_shows_what_a_debugging_handler_sees(
    migrated: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    replay = EventReplay(migrated)
    replay.add_handler(DebugEventHandler())

    with caplog.at_level(logging.INFO, logger="eventsourcing.debug"):
        result = await replay.replay_aggregate_events("migration-123")

    assert result.processed_events == len(caplog.messages) == 6


async def test_history_is_backfilled_with_its_own_timestamps(store: EventStore) -> None:
    legacy_users: list[dict[str, Any]] = [
        {
            "id": f"user-{number}",
            "name": f"name{number}",
            "migrated_at": datetime(2020, 1, number, tzinfo=UTC),
        }
        for number in (1, 2, 3)
    ]
    events = []
    for user in legacy_users:
        event = UserMigratedEvent(
            user_id=user["id"], username=user["name"], source_data=user, target_data=user
        )
        event.timestamp = user["migrated_at"]
        events.append(event)

    stored = await store.append_events(events)

    assert [event.timestamp for event in stored] == [user["migrated_at"] for user in legacy_users]
    assert stored[0].data["migrated_at"] == "2020-01-01T00:00:00Z"
    assert stored[0].data["source_data"]["migrated_at"] == "2020-01-01T00:00:00Z"
    assert all(event.recorded_at.year >= 2026 for event in stored)
