"""Handlers: what happens when an event arrives, and the four that every installation has.

A handler says which types it takes. It may be called more than once for an event and tells repetitions
by `event_id`; a fold behind a handler applies each recorded event exactly once. A handler that acts on
the outside world is not replayable: a replay leaves it out.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol, Self

from eventsourcing.canonical import comparable
from eventsourcing.events import BaseEvent, EventType, RecordedEvent
from eventsourcing.folds import ADMIN_MIGRATIONS, USER_MIGRATIONS, Fold, State
from eventsourcing.positions import PositionSet
from eventsourcing.statistics import MIGRATION_STATISTICS, is_migration, links, merge, split_key


class EventHandler(ABC):
    """Something that reacts to events."""

    replayable: ClassVar[bool] = True
    """Whether a replay may call it: false for whatever acts outside the system."""

    @property
    def name(self) -> str:
        """How requests, dead letters and logs call it."""
        return type(self).__name__

    @abstractmethod
    def can_handle(self, event_type: str) -> bool:
        """Whether events of this type concern the handler."""

    @abstractmethod
    async def handle(self, event: BaseEvent) -> None:
        """React to one event. An exception is retried, then parks the event's aggregate."""

    def folds(self) -> tuple[Fold, ...]:
        """The pure folds that the handler is wholly made of, by whose names its state() tells their states;
        none where it is not. A durable replay keeps their states in the store."""
        return ()

    def fresh(self) -> Self:
        """A twin without state, for a replay of its own; a handler without state is its own twin."""
        return self

    def state(self) -> dict[str, Any] | None:
        """What the handler has made of its events, as JSON values; None for a handler without state."""
        return None

    @property
    def state_version(self) -> str:
        """Changes whenever the same events would give another `state()`."""
        return "1"

    restorable: ClassVar[bool] = False
    """Whether `restore` is there: then a replay can begin at a snapshot."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what the `state()` of a twin was; the next event is the one after it."""
        raise NotImplementedError(f"{self.name} cannot take over a state")


class MigrationEventHandler(EventHandler):
    """The statistics of migrations and the views of migrated users and admins, in memory."""

    def __init__(self) -> None:
        self._states: dict[str, dict[str, State]] = {fold.name: {} for fold in self.folds()}
        self._applied = PositionSet()

    def folds(self) -> tuple[Fold, ...]:
        return MIGRATION_STATISTICS, USER_MIGRATIONS, ADMIN_MIGRATIONS

    def can_handle(self, event_type: str) -> bool:  # noqa: ARG002 - the folds choose
        return True

    async def handle(self, event: BaseEvent) -> None:
        if isinstance(event, RecordedEvent) and not self._applied.add(event.position):
            return
        for fold in self.folds():
            key = fold.key(event)
            if key is not None:
                fold.apply(self._states[fold.name].setdefault(key, fold.initial()), event)

    def fresh(self) -> Self:
        return type(self)()

    def state(self) -> dict[str, Any]:
        return self._states

    @property
    def state_version(self) -> str:
        return ".".join(str(fold.version) for fold in self.folds())

    restorable = True

    def restore(self, state: dict[str, Any]) -> None:
        self._states = state

    def get_migration_stats(self, migration_id: str) -> dict[str, Any]:
        """One migration's statistics (contract, section 3); {} for an unknown id."""
        parts = self._states[MIGRATION_STATISTICS.name]
        own = {key: part for key, part in parts.items() if split_key(key)[0] == migration_id}
        if not is_migration(own.values()):
            return {}
        correlations = links(own.values())
        own.update((key, part) for key, part in parts.items() if split_key(key)[1] in correlations)
        return merge(own.values())

    def get_all_migration_stats(self) -> dict[str, dict[str, Any]]:
        """The statistics of every migration, by id."""
        subjects = {split_key(key)[0] for key in self._states[MIGRATION_STATISTICS.name]} - {""}
        stats = {subject: self.get_migration_stats(subject) for subject in sorted(subjects)}
        return {subject: found for subject, found in stats.items() if found}

    def get_user_migrations(self) -> dict[str, State]:
        """The migrated users by id: username, migrated_at, source_data, target_data."""
        return self._view(USER_MIGRATIONS)

    def get_admin_migrations(self) -> dict[str, State]:
        """The migrated admins by id: username, migrated_at, source_data, target_data."""
        return self._view(ADMIN_MIGRATIONS)

    def _view(self, fold: Fold) -> dict[str, State]:
        return {key: dict(state) for key, state in self._states[fold.name].items() if state}


class NotificationService(Protocol):
    """Where notifications go."""

    async def send_notification(
        self, title: str, message: str, details: dict[str, Any] | None = None, priority: str = "normal"
    ) -> None:
        """Send one notification; priority is normal, medium or high."""


class NotificationEventHandler(EventHandler):
    """Tell people that a migration ended or is undone. Without a service it writes to the log."""

    replayable = False

    _NOTICES: ClassVar[dict[str, tuple[str, str]]] = {
        EventType.MIGRATION_COMPLETED: ("Migration Completed", "normal"),
        EventType.MIGRATION_FAILED: ("Migration Failed", "high"),
        EventType.ROLLBACK_INITIATED: ("Rollback Initiated", "high"),
        EventType.ROLLBACK_COMPLETED: ("Rollback Completed", "medium"),
    }

    def __init__(self, service: NotificationService | None = None) -> None:
        self._service = service or _LoggedNotifications()

    def can_handle(self, event_type: str) -> bool:
        return event_type in self._NOTICES

    async def handle(self, event: BaseEvent) -> None:
        title, priority = self._NOTICES[event.event_type]
        if event.data.get("success") is False:
            priority = "high"
        migration_id = event.data.get("migration_id") or event.aggregate_id
        verb = title.split()[1].lower()
        subject = "Rollback of migration" if title.startswith("Rollback") else "Migration"
        message = f"{subject} {migration_id} {verb}"
        reason = event.data.get("error_message") or event.data.get("reason")
        details = {"event_id": str(event.event_id), **event.data}
        await self._service.send_notification(
            title, f"{message}: {reason}" if reason else message, details=details, priority=priority
        )


class _LoggedNotifications:
    """Notifications as log lines, for an installation without a service."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("eventsourcing.notifications")

    async def send_notification(
        self,
        title: str,
        message: str,
        details: dict[str, Any] | None = None,  # noqa: ARG002 - the line holds no payload
        priority: str = "normal",
    ) -> None:
        subject = message.partition(": ")[0]  # what follows is the reason, and may quote a record
        self._logger.info("%s [%s]: %s", title, priority, subject)


class AuditEventHandler(EventHandler):
    """One line an event in the audit log.

    Of the payload numbers, ids, types and moments stand there as they are; other texts, which may tell of
    people, and whatever is long are summarised.
    """

    replayable = False

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("eventsourcing.audit")

    def can_handle(self, event_type: str) -> bool:  # noqa: ARG002 - everything is audited
        return True

    async def handle(self, event: BaseEvent) -> None:
        line = {
            "event_id": event.event_id.hex,
            "event_type": str(event.event_type),
            "aggregate_id": event.aggregate_id,
            "aggregate_type": event.aggregate_type,
            "event_version": event.event_version,
            "timestamp": event.timestamp,
            "correlation_id": event.correlation_id,
            "causation_id": event.causation_id,
            "data": {key: _summary(key, value) for key, value in event.data.items()},
        }
        self._logger.info("AUDIT: %s", comparable(line).decode())


class DebugEventHandler(EventHandler):
    """Log every event in full."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("eventsourcing.debug")

    def can_handle(self, event_type: str) -> bool:  # noqa: ARG002 - everything is of interest
        return True

    async def handle(self, event: BaseEvent) -> None:
        self._logger.info("EVENT: %s", comparable(event.model_dump()).decode())


_TELLING = ("_id", "_at", "_type", "_format")
"""How the names of payload fields end whose texts name no person."""


def _summary(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return f"{{{len(value)} keys}}"
    if isinstance(value, list):
        return f"[{len(value)} items]"
    if isinstance(value, str) and (len(value) > 100 or not key.endswith(_TELLING)):
        return f"<{len(value)} characters>"
    return value


def by_name(handlers: Iterable[EventHandler]) -> dict[str, EventHandler]:
    """Handlers by their names; the last one of a name stays."""
    return {handler.name: handler for handler in handlers}
