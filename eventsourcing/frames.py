"""The columnar append: frames of millions of rows into the store, chunk by chunk, under a name.

Each chunk is atomic. A manifest says which chunks are stored; repeating a call under the same name with
the same rows appends what is missing, and nothing twice: the ids of the events are those of the rows or
follow from the name and the row's number. A crash between a chunk and its entry in the manifest costs
that chunk's look-up and no event.

Two chunks are written at a time, each behind the one before it. Chunks that share an aggregate are written
one after the other, so that its rows keep their order even where a chunk has to begin again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol, TypeAlias

import polars as pl

from eventsourcing.canonical import utc
from eventsourcing.columnar import DIGEST_FORM, EventChunk, RowIds, to_chunk
from eventsourcing.errors import InvalidEventError, NotFoundError
from eventsourcing.storage.base import ChunkReceipt, StateTable, Storage

MANIFESTS = StateTable("append-manifests")
"""Key: the name. Value: AppendManifest."""

CHUNKS = StateTable("append-chunks")
"""Key: the name, separator, the chunk's number in ten digits. Value: digest and receipt."""

AT_ONCE = 2
"""How many chunks are written at the same time: while one is encoded, the server is busy with the other."""

_SEPARATOR = "\x1f"


def _numbers(*positions: int | None) -> list[int]:
    return [position for position in positions if position is not None]


class ArrowStream(Protocol):
    """Whatever hands over Arrow data: a table or reader of any library that speaks its C interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Frame: TypeAlias = "pl.DataFrame | pl.LazyFrame | ArrowStream"
Frames: TypeAlias = "Frame | Iterable[Frame]"


@dataclass(frozen=True, slots=True)
class AppendManifest:
    """What has been appended under a name, by all calls together; `appended_now` by the last one.

    `appended` counts the events that the name brought, `found` those that were stored before by others;
    positions are those of the events it brought, None without any. `completed_at` is None until a call
    came to the end of its rows.
    """

    name: str
    started_at: datetime
    chunk_rows: int
    rows: int = 0
    chunks: int = 0
    appended: int = 0
    appended_now: int = 0
    found: int = 0
    first_position: int | None = None
    last_position: int | None = None
    completed_at: datetime | None = None

    def with_chunk(self, receipt: ChunkReceipt, *, now: bool) -> AppendManifest:
        """The manifest after one more chunk, which this call wrote or an earlier one had."""
        return replace(
            self,
            chunks=self.chunks + 1,
            rows=self.rows + receipt.appended + receipt.found,
            appended=self.appended + receipt.appended,
            appended_now=self.appended_now + (receipt.appended if now else 0),
            found=self.found + receipt.found,
            first_position=min(_numbers(self.first_position, receipt.first_position), default=None),
            last_position=max(_numbers(self.last_position, receipt.last_position), default=None),
        )


async def append_frame(
    storage: Storage,
    frames: Frames,
    *,
    name: str,
    started_at: datetime | None,
    chunk_rows: int,
    on_chunk: Callable[[AppendManifest], None] | None,
) -> AppendManifest:
    """See EventStore.append_frame."""
    if not name or _SEPARATOR in name or len(name) > 255:
        raise ValueError("a name has 1 to 255 characters")
    if not 1 <= chunk_rows <= 100_000:
        raise ValueError("chunk_rows lies between 1 and 100,000")
    manifest = await _opened(storage, AppendManifest(name, utc(started_at or datetime.now(UTC)), chunk_rows))
    chunks = _chunks(frames, RowIds(name, manifest.started_at), manifest.chunk_rows)
    writing = _Writing(storage, manifest, on_chunk)
    following = asyncio.create_task(asyncio.to_thread(next, chunks, None))
    try:
        while (chunk := await following) is not None:
            # The next chunk is made while this one is written.
            following = asyncio.create_task(asyncio.to_thread(next, chunks, None))
            await writing.begin(chunk)
        await writing.finish()
    except asyncio.CancelledError:
        writing.give_up()
        raise
    finally:
        await asyncio.gather(following, writing.rest(), return_exceptions=True)
    manifest = replace(writing.manifest, completed_at=datetime.now(UTC))
    async with storage.transaction() as transaction:
        await transaction.put(MANIFESTS, name, asdict(manifest))
    return manifest


@dataclass(slots=True, eq=False)
class _Flight:
    """A chunk on its way: written by this call, unless an earlier one had."""

    streams: pl.Series
    receipt: asyncio.Future[ChunkReceipt]
    now: bool


class _Writing:
    """Writes the chunks of one call, two at a time while they share no aggregate; each comes behind the one
    before it. The manifest tells of those that are stored, in their order."""

    def __init__(
        self,
        storage: Storage,
        manifest: AppendManifest,
        on_chunk: Callable[[AppendManifest], None] | None,
    ) -> None:
        self._storage, self.manifest, self._on_chunk = storage, manifest, on_chunk
        self._begun = 0
        self._flights: deque[_Flight] = deque()

    async def begin(self, chunk: EventChunk) -> None:
        """Write a chunk; return as soon as the next one may begin. Raises what a chunk before it met."""
        key = f"{self.manifest.name}{_SEPARATOR}{self._begun:010d}"
        known = await self._known(key, chunk)
        while len(self._flights) >= AT_ONCE or any(
            flight.streams.is_in(chunk.frame["aggregate_id"].implode()).any() for flight in self._flights
        ):
            await self._land()
        placed = asyncio.Event()
        receipt = asyncio.ensure_future(self._write(key, chunk, known, placed))
        self._flights.append(_Flight(chunk.frame["aggregate_id"].unique(), receipt, known is None))
        self._begun += 1
        await placed.wait()

    async def finish(self) -> None:
        """Wait for what is on its way. Raises what one of the chunks met."""
        while self._flights:
            await self._land()

    async def rest(self) -> None:
        """Come to rest after a fault: a chunk behind the one that met it is stored with its entry, or not."""
        await asyncio.gather(*(flight.receipt for flight in self._flights), return_exceptions=True)

    def give_up(self) -> None:
        """Undo what is on its way."""
        for flight in self._flights:
            flight.receipt.cancel()

    async def _land(self) -> None:
        flight = self._flights.popleft()
        self.manifest = self.manifest.with_chunk(await flight.receipt, now=flight.now)
        if self._on_chunk is not None:
            self._on_chunk(self.manifest)

    async def _known(self, key: str, chunk: EventChunk) -> ChunkReceipt | None:
        """What an earlier call noted. Raises InvalidEventError where it wrote other rows.

        What an older version noted cannot be compared: its chunk is appended again, and found."""
        async with self._storage.transaction() as transaction:
            known = await transaction.get(CHUNKS, key)
        if known is None or not known["digest"].startswith(DIGEST_FORM):
            return None
        if known["digest"] != chunk.digest:
            raise InvalidEventError(
                f"the rows from here on are not those appended as {self.manifest.name!r} before",
                index=self._begun * self.manifest.chunk_rows,
            )
        return ChunkReceipt(*known["receipt"])

    async def _write(
        self, key: str, chunk: EventChunk, known: ChunkReceipt | None, placed: asyncio.Event
    ) -> ChunkReceipt:
        try:
            if known is not None:
                return known
            receipt = await self._storage.append_chunk(chunk, on_placed=placed.set)
            async with self._storage.transaction() as transaction:
                await transaction.put(CHUNKS, key, {"digest": chunk.digest, "receipt": list(receipt)})
            return receipt
        finally:
            placed.set()


async def append_manifest(storage: Storage, name: str) -> AppendManifest:
    """The manifest of a named append. Raises NotFoundError."""
    async with storage.transaction() as transaction:
        value = await transaction.get(MANIFESTS, name)
    if value is None:
        raise NotFoundError("manifest", name)
    return _manifest(value)


async def _opened(storage: Storage, fresh: AppendManifest) -> AppendManifest:
    """The manifest to begin with: that of an earlier call keeps its start and the size of its chunks."""
    async with storage.transaction() as transaction:
        if await transaction.add(MANIFESTS, fresh.name, asdict(fresh)):
            return fresh
    known = await append_manifest(storage, fresh.name)
    return replace(fresh, started_at=known.started_at, chunk_rows=known.chunk_rows)


def _chunks(frames: Frames, ids: RowIds, chunk_rows: int) -> Iterator[EventChunk]:
    """Chunks of this many rows, the last one smaller, whatever the sizes of the frames."""
    first_row = 0
    rest = pl.DataFrame()
    for frame in _each(frames, chunk_rows):
        rest = pl.concat([rest, frame], how="vertical_relaxed") if rest.height else frame
        whole = rest.height - rest.height % chunk_rows
        for start in range(0, whole, chunk_rows):
            yield to_chunk(rest.slice(start, chunk_rows), ids, first_row=first_row)
            first_row += chunk_rows
        rest = rest.slice(whole)
    if rest.height:
        yield to_chunk(rest, ids, first_row=first_row)


def _each(frames: Frames, chunk_rows: int) -> Iterator[pl.DataFrame]:
    if isinstance(frames, pl.LazyFrame):
        yield from frames.collect_batches(chunk_size=chunk_rows, maintain_order=True)
    elif hasattr(frames, "__arrow_c_stream__"):
        yield frames if isinstance(frames, pl.DataFrame) else pl.DataFrame(frames)
    else:
        for frame in frames:
            yield from _each(frame, chunk_rows)


def _manifest(value: dict[str, Any]) -> AppendManifest:
    moments = {
        name: datetime.fromisoformat(value[name]) if value[name] else None
        for name in ("started_at", "completed_at")
    }
    return AppendManifest(**{**value, **moments})
