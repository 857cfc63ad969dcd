"""Substitutes and factories for the tests of teams that build on this library."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from eventsourcing.catalogue import (
    DataExtractedEvent,
    DataImportedEvent,
    DataTransformedEvent,
    DataValidatedEvent,
    MigrationCompletedEvent,
    MigrationStartedEvent,
    UserMigratedEvent,
)
from eventsourcing.events import BaseEvent
from eventsourcing.handlers import EventHandler


class InMemoryNotifications:
    """A notification service that keeps what it was told: (title, message, details, priority)."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, dict[str, Any] | None, str]] = []

    async def send_notification(
        self, title: str, message: str, details: dict[str, Any] | None = None, priority: str = "normal"
    ) -> None:
        """Keep the notification."""
        self.sent.append((title, message, details, priority))


class InMemoryHandler(EventHandler):
    """A handler that keeps the events it took, and fails for those that `fails` picks."""

    def __init__(
        self, types: Iterable[str] = (), *, fails: Callable[[BaseEvent], Exception | None] = lambda _: None
    ) -> None:
        self.events: list[BaseEvent] = []
        self.calls = 0
        self._types = frozenset(map(str, types))
        self._fails = fails

    def can_handle(self, event_type: str) -> bool:
        return not self._types or event_type in self._types

    async def handle(self, event: BaseEvent) -> None:
        self.calls += 1
        failure = self._fails(event)
        if failure is not None:
            raise failure
        self.events.append(event)


def a_migration(migration_id: str = "migration-123", *, users: int = 2) -> list[BaseEvent]:
    """The events of a small migration that ended well, linked by the started event."""
    started = MigrationStartedEvent(
        migration_id=migration_id, source_config={"kind": "sqlite"}, target_config={"kind": "postgresql"}
    )
    total = {"record_count": users, "source_type": "sqlite", "extraction_stats": {}}
    stages: list[BaseEvent] = [
        DataExtractedEvent(extraction_id=migration_id, **total),
        DataTransformedEvent(
            transformation_id=migration_id, input_count=users, output_count=users, transformation_stats={}
        ),
        DataValidatedEvent(
            validation_id=migration_id,
            total_records=users,
            valid_records=users,
            invalid_records=0,
            validation_errors=[],
        ),
        *(
            UserMigratedEvent(
                user_id=f"user-{migration_id}-{number}",
                username=f"user{number}",
                source_data={"id": number},
                target_data={"id": number},
            )
            for number in range(1, users + 1)
        ),
        DataImportedEvent(
            import_id=migration_id, target_type="postgresql", imported_count=users, import_stats={}
        ),
        MigrationCompletedEvent(migration_id=migration_id, statistics={"users": users}, duration_seconds=1.5),
    ]
    return [started, *(event.follow(started) for event in stages)]
