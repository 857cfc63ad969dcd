"""Backfill: events from before there was a store, each at the date when it happened.

The date is the event's `timestamp`, and its `…_at` fields follow; `recorded_at` says when it was
appended, `metadata.backfilled` that it was. Ids follow from what a row says, so that a second run appends
nothing, and a run that was cut off is completed by running it again. Handlers that act outside the
system are not told. States of a name: started → completed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, tzinfo
from itertools import takewhile
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import polars as pl

from eventsourcing.backfill_rows import COLUMNS, Faults, Row, checked_rows, rows_of
from eventsourcing.canonical import decode
from eventsourcing.columnar import RowIds, to_chunk
from eventsourcing.events import BaseEvent
from eventsourcing.storage.base import EventStorage, StateTable

if TYPE_CHECKING:
    from eventsourcing.store import EventStore

BACKFILLS = StateTable("backfills")
"""Key: the name. Value: the manifest of its last call; without `completed_at` that one was cut off."""

CHUNK = 10_000
"""Events a transaction, and ids a question."""

Progress = Callable[[str, int, int], None]
"""Told the stage (`checked`, `appended`), how many events are done, and of how many."""


@dataclass(frozen=True, slots=True)
class BackfillManifest:
    """What a backfill was. `first` and `last` are the earliest and the latest date, None without events.

    `events` are those of the source, without `repeated` rows that say exactly the same; `appended` are
    those of them that were not stored before this call.
    """

    name: str
    events: int
    repeated: int
    appended: int
    first: datetime | None
    last: datetime | None
    started_at: datetime
    completed_at: datetime | None


async def backfill(
    store: EventStore,
    source: Iterable[Row] | Any,
    *,
    name: str,
    merge: bool = False,
    zone: tzinfo | None = None,
    on_progress: Progress | None = None,
) -> BackfillManifest:
    """See EventStore.backfill."""
    tell = on_progress or _tell_nobody
    now = datetime.now(UTC)
    rows = await _checked(source, name=name, zone=zone, now=now)
    events = _distinct(rows)
    tell("checked", events.height, events.height)
    pending = await _not_stored(store, events)
    if not merge:
        await _refuse_later_events(store.storage, pending, rows.height)
    manifest = BackfillManifest(
        name=name,
        events=events.height,
        repeated=rows.height - events.height,
        appended=pending.height,
        first=cast("datetime | None", events["timestamp"].min()),
        last=cast("datetime | None", events["timestamp"].max()),
        started_at=now,
        completed_at=None,
    )
    manifest = await _note(store, manifest)
    await _append(store.storage, pending, tell, RowIds(name, now))
    return await _note(store, replace(manifest, completed_at=datetime.now(UTC)))


async def _checked(source: Any, **options: Any) -> pl.DataFrame:
    """The rows, checked in a thread that ends with its caller."""
    cancelled = threading.Event()
    rows = takewhile(lambda _: not cancelled.is_set(), rows_of(source))
    try:
        return await asyncio.to_thread(checked_rows, rows, **options)
    finally:
        cancelled.set()


def _distinct(rows: pl.DataFrame) -> pl.DataFrame:
    """Each event once, by its date and then in the order given; refuses an id that names two events."""
    events = rows.unique("event_id", keep="first", maintain_order=True)
    if events.height < rows.height:
        said = [name for name in COLUMNS if name != "event_id"]
        differing = rows.unique(["event_id", *said], keep="first", maintain_order=True)
        faults = Faults()
        for number in differing.filter(~pl.col("row").is_in(events["row"].implode()))["row"]:
            faults.add(number, "event_id", "names another event in an earlier row")
        faults.refuse(rows.height)
    return events.sort("timestamp", maintain_order=True)


async def _not_stored(store: EventStore, events: pl.DataFrame) -> pl.DataFrame:
    """The events that are to be appended. Of the others, those that name their id must say the same."""
    pending = [events.clear()]
    for chunk in events.iter_slices(CHUNK):
        ids = await store.storage.stored_ids([UUID(hex=text) for text in chunk["event_id"]])
        is_stored = pl.col("event_id").is_in([event_id.hex for event_id in ids])
        await store.append_events(_drafts(chunk.filter(is_stored & pl.col("own_id"))))
        pending.append(chunk.filter(~is_stored))
    return pl.concat(pending)


async def _refuse_later_events(storage: EventStorage, pending: pl.DataFrame, rows: int) -> None:
    """Refuse aggregates in which something later is stored: what is appended now would come behind it."""
    faults = Faults()
    earliest = pending.group_by("aggregate_id", maintain_order=True).agg(
        pl.col("timestamp").min(), pl.col("row").first()
    )
    for chunk in earliest.iter_slices(CHUNK):
        latest = await storage.latest_timestamps(chunk["aggregate_id"].to_list())
        for aggregate_id, timestamp, row in chunk.iter_rows():
            if aggregate_id in latest and latest[aggregate_id] > timestamp:
                faults.add(row, "aggregate_id", "holds later events; `merge` appends behind them")
    faults.refuse(rows)


async def _append(storage: EventStorage, pending: pl.DataFrame, tell: Progress, ids: RowIds) -> None:
    done = 0
    for chunk in pending.iter_slices(CHUNK):
        await storage.append_chunk(to_chunk(chunk.select(*COLUMNS), ids))
        done += chunk.height
        tell("appended", done, pending.height)


def _drafts(events: pl.DataFrame) -> list[BaseEvent]:
    drafts = []
    for fields in events.select(*COLUMNS).iter_rows(named=True):
        payloads = {name: decode(fields[name]) for name in ("metadata", "data")}
        drafts.append(BaseEvent(**fields | payloads))
    return drafts


async def _note(store: EventStore, manifest: BackfillManifest) -> BackfillManifest:
    """Keep the manifest under its name, with the moment when this name was started first."""
    async with store.storage.transaction() as transaction:
        before = await transaction.get(BACKFILLS, manifest.name, lock=True)
        if before is not None:
            manifest = replace(manifest, started_at=datetime.fromisoformat(before["started_at"]))
        await transaction.put(BACKFILLS, manifest.name, asdict(manifest))
    return manifest


def _tell_nobody(_stage: str, _done: int, _total: int) -> None:
    pass
