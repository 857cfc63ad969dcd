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


async def watch(store: EventStore, migration_id: str, *, after: int) -> None:
    """Show each stage as its event arrives, and a bar of migrated records, until the migration completed."""
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
        records = bar.add_task("records migrated", total=None)
        async for piece in store.follow(query, after=after):
            for event in piece.events:
                if event.event_type in _RECORDS:
                    bar.advance(records)
                elif event.aggregate_id.partition(":")[0] == migration_id:
                    _show_stage(bar, event)
                    if event.event_type == EventType.DATA_VALIDATED:
                        bar.update(records, total=event.data["valid_records"])
                    if event.event_type == EventType.MIGRATION_COMPLETED:
                        return


def _show_stage(bar: Progress, event: RecordedEvent) -> None:
    event_type = EventType(event.event_type)
    count = event.data.get(_COUNTS.get(event_type, ""))
    note = f"{count:,} records" if isinstance(count, int) else ""
    bar.console.print(f"[green]✓[/green] {event.timestamp:%H:%M:%S}  {_STAGES[event_type]:<18} {note}")
