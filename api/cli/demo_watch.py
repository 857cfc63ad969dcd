"""Watch a migration live, through nothing but its events."""

from __future__ import annotations

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from api.cli.screen import console
from eventsourcing.events import EventType, RecordedEvent
from eventsourcing.query import EventQuery
from eventsourcing.store import EventStore

_STAGES = {
    EventType.MIGRATION_STARTED: "started",
    EventType.SCHEMA_COMPATIBILITY_CHECKED: "schemas compared",
    EventType.DATA_EXTRACTED: "extracted",
    EventType.DATA_TRANSFORMED: "transformed",
    EventType.DATA_VALIDATED: "validated",
    EventType.DATA_IMPORTED: "imported",
    EventType.MIGRATION_COMPLETED: "completed",
}
_COUNTS = {
    EventType.DATA_EXTRACTED: "record_count",
    EventType.DATA_TRANSFORMED: "output_count",
    EventType.DATA_VALIDATED: "valid_records",
    EventType.DATA_IMPORTED: "imported_count",
}
_RECORDS = (EventType.USER_MIGRATED, EventType.ADMIN_MIGRATED)


class Watch:
    """Shows each stage as its event arrives, and a bar of migrated records; goes on where it left off."""

    def __init__(self, store: EventStore, migration_id: str, *, after: int) -> None:
        self._store, self._migration_id, self._after = store, migration_id, after
        self._migrated, self._valid = 0, 0

    async def until(self, share: float) -> tuple[int, int]:
        """Watch until this share of the valid records has its event; 1 watches until the migration completed.

        Returns how many records have their event, and how many will have one.
        """
        bar = Progress(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        query = EventQuery(event_types=(*_STAGES, *_RECORDS))
        with bar:
            records = bar.add_task("records migrated", total=self._valid or None, completed=self._migrated)
            async for piece in self._store.follow(query, after=self._after):
                for event in piece.events:
                    self._after = event.position
                    if event.event_type in _RECORDS:
                        self._migrated += 1
                        bar.advance(records)
                    elif event.aggregate_id.partition(":")[0] == self._migration_id:
                        _show_stage(bar, event)
                        if event.event_type == EventType.DATA_VALIDATED:
                            self._valid = event.data["valid_records"]
                            bar.update(records, total=self._valid)
                        if event.event_type == EventType.MIGRATION_COMPLETED:
                            return self._migrated, self._valid
                if share < 1 and self._valid and self._migrated >= share * self._valid:
                    return self._migrated, self._valid
        raise AssertionError("a store is followed without end")


def _show_stage(bar: Progress, event: RecordedEvent) -> None:
    event_type = EventType(event.event_type)
    count = event.data.get(_COUNTS.get(event_type, ""))
    note = f"{count:,} records" if isinstance(count, int) else ""
    bar.console.print(f"[green]✓[/green] {event.timestamp:%H:%M:%S}  {_STAGES[event_type]:<18} {note}")
