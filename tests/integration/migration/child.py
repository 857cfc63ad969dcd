"""A migration in a process of its own, which somebody may kill: `begun` is printed before it begins.

`python -m tests.integration.migration.child run|rollback source target events work chunk_rows`
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from eventsourcing import EventStore, EventStoreConfig
from pipelines.migration import Migration, parse_mapping
from pipelines.migration.legacy_panel import mapping_path

MIGRATION_ID = "migration-1"


def migration(store: EventStore, source: str, target: str, work: Path, chunk_rows: int) -> Migration:
    """The demo's migration in chunks of this size."""
    text = mapping_path().read_text().replace("rows: 1000", f"rows: {chunk_rows}")
    return Migration(
        parse_mapping(text),
        source_url=source,
        target_url=target,
        store=store,
        work_dir=work,
        migration_id=MIGRATION_ID,
        secret="a configured secret",
    )


async def main(action: str, source: str, target: str, events: str, work: str, chunk_rows: str) -> None:
    """Run it, or roll it back."""
    async with EventStore(EventStoreConfig(database_url=events)) as store:
        await store.initialize()
        made = migration(store, source, target, Path(work), int(chunk_rows))
        print("begun", flush=True)  # noqa: T201 - the parent waits for it
        await (made.run() if action == "run" else made.rollback("a rehearsal"))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
