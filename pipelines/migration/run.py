"""Migration: one run of a mapping, a method for each stage, resumable by its migration_id.

Signatures first; the stages arrive in the next commits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping as Dict, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from eventsourcing.events import BaseEvent, RecordedEvent


class Progress(NamedTuple):
    """How far a stage is: records of one entity. Reported at most ten times a second."""

    stage: str
    entity: str
    done: int
    total: int


class EventLog(Protocol):
    """What the engine needs of an event store."""

    async def append_events(self, events: Sequence[BaseEvent]) -> list[RecordedEvent]: ...


@dataclass(frozen=True)
class StageOutcome:
    """What a stage found and did: the payload of its event, and when it ended."""

    stage: str
    at: datetime
    facts: dict[str, Any] = field(default_factory=dict)


class Migration:
    """One run. Every method may be called on an object of its own, even in another process."""

    def __init__(
        self,
        mapping: Path,  # a file, or a loaded mapping
        *,
        source_url: str,
        target_url: str,
        store: EventLog,
        work_dir: Path,
        migration_id: str,
        secret: str,
        metadata: Dict[str, Any] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None: ...

    async def run(self) -> StageOutcome: ...          # all stages; fail() on a MigrationError, then raises it
    async def start(self) -> StageOutcome: ...        # MIGRATION_STARTED
    async def check_schema(self) -> StageOutcome: ... # SCHEMA_COMPATIBILITY_CHECKED
    async def extract(self) -> StageOutcome: ...      # DATA_EXTRACTED
    async def transform(self) -> StageOutcome: ...    # UUID_TRANSFORMED, DATETIME_CONVERTED, DATA_TRANSFORMED
    async def validate(self) -> StageOutcome: ...     # record.quarantined …, DATA_VALIDATED
    async def load(self) -> StageOutcome: ...         # ADMIN_/USER_MIGRATED …, DATA_IMPORTED
    async def verify(self) -> StageOutcome: ...       # no event; facts {ok, entities, differences}; never raises for a difference
    async def complete(self) -> StageOutcome: ...     # MIGRATION_COMPLETED; VerificationError when verify was not ok
    async def fail(self, error: Exception) -> None: ...  # MIGRATION_FAILED {error_message, error_details: {stage, error, resumable}}
    async def rollback(self, reason: str) -> StageOutcome: ...  # ROLLBACK_INITIATED, *.rolled_back …, ROLLBACK_COMPLETED
