"""Our own event types: one declaration each (contract, section 2)."""

from __future__ import annotations

from typing import Any

from eventsourcing.events import OCCURRED, EventPayload, EventType, TypedEvent, UtcDatetime, register_event
from eventsourcing.secrets import ConnectionConfig

RECORD = ("username", "source_data", "target_data")
"""The personal data of a migrated record's event."""


@register_event
class MigrationStartedEvent(
    TypedEvent,
    event_type=EventType.MIGRATION_STARTED,
    aggregate_type="migration",
    id_field="migration_id",
    personal=(),
):
    """A migration began, from this source to this target."""

    class Payload(EventPayload):
        source_config: ConnectionConfig
        target_config: ConnectionConfig
        started_at: UtcDatetime = OCCURRED


@register_event
class MigrationCompletedEvent(
    TypedEvent,
    event_type=EventType.MIGRATION_COMPLETED,
    aggregate_type="migration",
    id_field="migration_id",
    personal=(),
):
    """A migration ended well."""

    class Payload(EventPayload):
        statistics: dict[str, Any]
        duration_seconds: float
        completed_at: UtcDatetime = OCCURRED


@register_event
class MigrationFailedEvent(
    TypedEvent,
    event_type=EventType.MIGRATION_FAILED,
    aggregate_type="migration",
    id_field="migration_id",
    personal=("error_message", "error_details"),
):
    """A migration stopped on an error."""

    class Payload(EventPayload):
        error_message: str
        error_details: dict[str, Any]
        failed_at: UtcDatetime = OCCURRED


@register_event
class DataExtractedEvent(
    TypedEvent,
    event_type=EventType.DATA_EXTRACTED,
    aggregate_type="extraction",
    id_field="extraction_id",
    personal=(),
):
    """All records were read from the source, in one consistent snapshot."""

    class Payload(EventPayload):
        source_type: str
        record_count: int
        extraction_stats: dict[str, Any]
        extracted_at: UtcDatetime = OCCURRED


@register_event
class DataTransformedEvent(
    TypedEvent,
    event_type=EventType.DATA_TRANSFORMED,
    aggregate_type="transformation",
    id_field="transformation_id",
    personal=(),
):
    """The records were brought into the target's form."""

    class Payload(EventPayload):
        input_count: int
        output_count: int
        transformation_stats: dict[str, Any]
        transformed_at: UtcDatetime = OCCURRED


@register_event
class DataValidatedEvent(
    TypedEvent,
    event_type=EventType.DATA_VALIDATED,
    aggregate_type="validation",
    id_field="validation_id",
    personal=("validation_errors",),
):
    """The transformed records were checked against the rules."""

    class Payload(EventPayload):
        total_records: int
        valid_records: int
        invalid_records: int
        validation_errors: list[Any]
        validated_at: UtcDatetime = OCCURRED


@register_event
class DataImportedEvent(
    TypedEvent, event_type=EventType.DATA_IMPORTED, aggregate_type="import", id_field="import_id", personal=()
):
    """The valid records were written to the target."""

    class Payload(EventPayload):
        target_type: str
        imported_count: int
        import_stats: dict[str, Any]
        imported_at: UtcDatetime = OCCURRED


class MigratedPayload(EventPayload):
    """What a record was and what it became; secret fields hold keyed hashes."""

    username: str
    source_data: dict[str, Any]
    target_data: dict[str, Any]
    migrated_at: UtcDatetime = OCCURRED


@register_event
class UserMigratedEvent(
    TypedEvent, event_type=EventType.USER_MIGRATED, aggregate_type="user", id_field="user_id", personal=RECORD
):
    """A user arrived in the target."""

    class Payload(MigratedPayload):
        pass


@register_event
class AdminMigratedEvent(
    TypedEvent,
    event_type=EventType.ADMIN_MIGRATED,
    aggregate_type="admin",
    id_field="admin_id",
    personal=RECORD,
):
    """An admin arrived in the target."""

    class Payload(MigratedPayload):
        pass


@register_event
class RollbackInitiatedEvent(
    TypedEvent,
    event_type=EventType.ROLLBACK_INITIATED,
    aggregate_type="rollback",
    id_field="rollback_id",
    personal=(),
):
    """Somebody began to undo a migration."""

    class Payload(EventPayload):
        migration_id: str
        reason: str
        rollback_scope: dict[str, Any]
        initiated_at: UtcDatetime = OCCURRED


@register_event
class RollbackCompletedEvent(
    TypedEvent,
    event_type=EventType.ROLLBACK_COMPLETED,
    aggregate_type="rollback",
    id_field="rollback_id",
    personal=(),
):
    """The undoing ended; `success` is false when anything of the migration is left."""

    class Payload(EventPayload):
        migration_id: str
        rollback_stats: dict[str, Any]
        success: bool
        completed_at: UtcDatetime = OCCURRED


@register_event
class SchemaCompatibilityCheckedEvent(
    TypedEvent,
    event_type=EventType.SCHEMA_COMPATIBILITY_CHECKED,
    aggregate_type="schema",
    id_field="check_id",
    personal=(),
):
    """Source and target schemas were compared, before anything was written."""

    class Payload(EventPayload):
        source_schema: dict[str, Any]
        target_schema: dict[str, Any]
        compatibility_result: dict[str, Any]
        checked_at: UtcDatetime = OCCURRED


@register_event
class UUIDTransformedEvent(
    TypedEvent,
    event_type=EventType.UUID_TRANSFORMED,
    aggregate_type="uuid_transformation",
    id_field="transformation_id",
    personal=(),
):
    """Identifiers were brought from one UUID format into another."""

    class Payload(EventPayload):
        source_format: str
        target_format: str
        transformation_count: int
        transformed_at: UtcDatetime = OCCURRED


@register_event
class DatetimeConvertedEvent(
    TypedEvent,
    event_type=EventType.DATETIME_CONVERTED,
    aggregate_type="datetime_conversion",
    id_field="conversion_id",
    personal=(),
):
    """Moments were brought from one format into another."""

    class Payload(EventPayload):
        source_format: str
        target_format: str
        conversion_count: int
        converted_at: UtcDatetime = OCCURRED


@register_event
class RecordQuarantinedEvent(
    TypedEvent,
    event_type=EventType.RECORD_QUARANTINED,
    aggregate_type="record",
    id_field="record_id",
    personal=("source_key", "message"),
):
    """A record broke a rule and was set aside: which rule, at which column, with its secrets masked."""

    class Payload(EventPayload):
        entity: str
        source_key: str
        stage: str
        rule: str
        column: str
        message: str
        quarantined_at: UtcDatetime = OCCURRED


@register_event
class RecordReleasedEvent(
    TypedEvent,
    event_type=EventType.RECORD_RELEASED,
    aggregate_type="record",
    id_field="record_id",
    personal=("source_key",),
):
    """A quarantined record went on in a later attempt: it was `migrated`, or is `filtered` now."""

    class Payload(EventPayload):
        migration_id: str
        entity: str
        source_key: str
        attempt: int
        outcome: str
        released_at: UtcDatetime = OCCURRED


class RolledBackPayload(EventPayload):
    """Which undoing took the record back, and how: `deleted` or `restored`."""

    rollback_id: str
    migration_id: str
    action: str
    rolled_back_at: UtcDatetime = OCCURRED


@register_event
class UserRolledBackEvent(
    TypedEvent, event_type=EventType.USER_ROLLED_BACK, aggregate_type="user", id_field="user_id", personal=()
):
    """A migrated user was taken back."""

    class Payload(RolledBackPayload):
        pass


@register_event
class AdminRolledBackEvent(
    TypedEvent,
    event_type=EventType.ADMIN_ROLLED_BACK,
    aggregate_type="admin",
    id_field="admin_id",
    personal=(),
):
    """A migrated admin was taken back."""

    class Payload(RolledBackPayload):
        pass


@register_event
class CutoverChangedEvent(
    TypedEvent,
    event_type=EventType.CUTOVER_CHANGED,
    aggregate_type="cutover",
    id_field="cutover_id",
    personal=(),
):
    """A gradual migration moved from one phase to another."""

    class Payload(EventPayload):
        migration_id: str
        from_phase: str
        to_phase: str
        changed_at: UtcDatetime = OCCURRED


MIGRATION_SEQUENCE = (
    EventType.MIGRATION_STARTED,
    EventType.DATA_EXTRACTED,
    EventType.DATA_TRANSFORMED,
    EventType.DATA_VALIDATED,
    EventType.DATA_IMPORTED,
    EventType.MIGRATION_COMPLETED,
)
"""The stream of a migration that went well, whatever it migrated."""
