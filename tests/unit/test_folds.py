"""Folds: pure, and indifferent to the order between aggregates."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from eventsourcing import (
    AdminMigratedEvent,
    AdminRolledBackEvent,
    BaseEvent,
    UserMigratedEvent,
    UserRolledBackEvent,
)
from eventsourcing.folds import (
    ADMIN_MIGRATIONS,
    EVENT_STATISTICS,
    USER_MIGRATIONS,
    Fold,
    State,
    fold_events,
)
from tests.factories import NOON, draft

UNDONE = {"rollback_id": "rollback-1", "migration_id": "migration-1", "action": "deleted", "timestamp": NOON}


def user(number: int) -> UserMigratedEvent:
    return UserMigratedEvent(
        user_id=f"user-{number}",
        username=f"name-{number}",
        source_data={"id": number},
        target_data={"id": str(UUID(int=number))},
        timestamp=NOON,
    )


def view(fold: Fold, events: Sequence[BaseEvent]) -> dict[str, State]:
    return {key: state for key, state in fold_events(fold, events).items() if state}


def test_a_migrated_user_is_shown_with_what_it_was_and_became() -> None:
    assert view(USER_MIGRATIONS, [user(1)]) == {
        "user-1": {
            "username": "name-1",
            "migrated_at": "2024-05-01T12:00:00Z",
            "source_data": {"id": 1},
            "target_data": {"id": str(UUID(int=1))},
        }
    }


def test_users_and_admins_are_apart() -> None:
    admin = AdminMigratedEvent(admin_id="admin-1", username="root", source_data={}, target_data={})
    assert list(view(USER_MIGRATIONS, [user(1), admin])) == ["user-1"]
    assert list(view(ADMIN_MIGRATIONS, [user(1), admin])) == ["admin-1"]


def test_a_rolled_back_record_is_dropped_from_its_view() -> None:
    events = [user(1), user(2), UserRolledBackEvent(user_id="user-1", **UNDONE)]
    assert list(view(USER_MIGRATIONS, events)) == ["user-2"]
    admin = AdminMigratedEvent(admin_id="admin-1", username="root", source_data={}, target_data={})
    assert view(ADMIN_MIGRATIONS, [admin, AdminRolledBackEvent(admin_id="admin-1", **UNDONE)]) == {}


def test_a_record_migrated_again_after_its_rollback_is_shown_again() -> None:
    events = [user(1), UserRolledBackEvent(user_id="user-1", **UNDONE), user(1)]
    assert list(view(USER_MIGRATIONS, events)) == ["user-1"]


def test_a_plain_event_with_an_empty_payload_is_folded_with_what_it_has() -> None:
    state = view(USER_MIGRATIONS, [draft("user-9", "user.migrated", aggregate_type="user")])
    assert state == {
        "user-9": {"username": None, "migrated_at": None, "source_data": None, "target_data": None}
    }


def test_event_statistics_count_everything_and_keep_the_latest_moment() -> None:
    events = [draft(timestamp=NOON), user(1), draft(timestamp=NOON - timedelta(days=1))]
    assert fold_events(EVENT_STATISTICS, events) == {
        "all": {
            "total_events": 3,
            "events_by_type": {"order.placed": 2, "user.migrated": 1},
            "events_by_aggregate_type": {"order": 2, "user": 1},
            "latest_event_timestamp": "2024-05-01T12:00:00Z",
        }
    }


def test_event_statistics_do_not_depend_on_any_order() -> None:
    events = [draft(f"order-{n}", timestamp=NOON + timedelta(minutes=n)) for n in range(5)]
    assert fold_events(EVENT_STATISTICS, events) == fold_events(EVENT_STATISTICS, events[::-1])


def test_each_key_starts_from_a_state_of_its_own() -> None:
    first, second = EVENT_STATISTICS.initial(), EVENT_STATISTICS.initial()
    EVENT_STATISTICS.apply(first, draft())
    assert second["total_events"] == 0
    assert second["events_by_type"] == {}
