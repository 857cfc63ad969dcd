"""`POST /events/bulk`: events as lines of JSON, stored while they come in, with a result line for each.

Lines are stored in chunks of 500, each in one transaction; a chunk that is refused is stored line by line,
so that a line that cannot be stored stops no other. Results are told in the order of the lines. A client
need not read them while it sends: of one call they are bounded by its 100,000 lines. Whatever ends a call
early, its last line says where to go on: with event ids, or an `Idempotency-Key` from which they are made,
sending lines again stores nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from api.access import Scope as AccessScope
from api.access import caller_of, needs
from api.dependencies import OpenStore
from api.idempotency import IdempotencyKey
from api.problems import (
    MALFORMED,
    TOO_LARGE,
    TOO_SLOW,
    UNSUPPORTED_MEDIA,
    ProblemError,
    problem_body,
    problem_of,
    validation_problem,
)
from api.requests import BODY_S, MAX_BATCH_BYTES, MAX_BODY_BYTES, MAX_DEPTH, NdjsonRoute, is_deeper
from api.schemas import EventBody, problems
from eventsourcing import ANY, BaseEvent, EventSourcingError, EventStore, UnavailableError
from eventsourcing.events import derived_event_id, named_token, new_event_id

CHUNK = 500
MAX_LINES = 100_000

NDJSON = "application/x-ndjson"
_MEDIA = {NDJSON, "application/ndjson", "application/jsonl", "application/x-jsonlines"}

bulk = APIRouter(route_class=NdjsonRoute, tags=["events"])

_BODY = {
    "required": True,
    "content": {
        NDJSON: {
            "schema": {"description": "One event of `POST /events` a line."},
            "example": '{"event_type":"migration.started","aggregate_id":"migration-123",'
            '"aggregate_type":"migration","data":{"source_config":{},"target_config":{}}}\n',
        }
    },
}
_RESULTS = {
    "description": "A result a line, and at the end where to go on: `done` or `stopped`.",
    "content": {
        NDJSON: {
            "schema": {"type": "string"},
            "example": '{"line":1,"status":"stored","event_id":"0199…","event_version":1,"position":7}\n'
            '{"status":"done","resume_from":2,"stored":1,"known":0,"refused":0}\n',
        }
    },
}


@bulk.post(
    "/events/bulk",
    response_class=Response,
    response_model=None,
    responses={200: _RESULTS, **problems(406, 415, 422, 503)},
    openapi_extra={"requestBody": _BODY, **needs(AccessScope.APPEND)},
)
async def publish_lines(
    request: Request,
    store: OpenStore,
    resume_from: Annotated[int, Query(ge=1, le=2**53)] = 1,
    idempotency_key: IdempotencyKey = None,
    content_type: Annotated[str, Header()] = "",
) -> Response:
    """Store events while they come in, each line by itself; the first line has the number `resume_from`."""
    if content_type.partition(";")[0].strip().lower() not in _MEDIA:
        raise ProblemError(UNSUPPORTED_MEDIA, f"Send Content-Type: {NDJSON}.")
    await store.initialize()
    token = named_token(caller_of(request).name, idempotency_key) if idempotency_key else new_event_id()
    run = BulkRun(store, token, next_line=resume_from)
    return _Lines(run.results(request))


class _Lines(Response):
    """Sends lines as they come. Starlette's own streaming listens for the end of the connection meanwhile,
    and would take the lines that are still to be read."""

    media_type = NDJSON

    def __init__(self, lines: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all lines to their end."""
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._lines) as lines:
            async for line in lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@dataclass
class BulkRun:
    """One call: lines in, results out. `next_line` is the first that has no result yet."""

    store: EventStore
    token: UUID
    next_line: int
    counts: dict[str, int] = field(default_factory=lambda: {"stored": 0, "known": 0, "refused": 0})

    async def results(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The results as they come. The lines are read on whether or not somebody takes them."""
        told: asyncio.Queue[bytes | None] = asyncio.Queue()
        working = asyncio.create_task(self._work(request, told), name="bulk")
        try:
            while (piece := await told.get()) is not None:
                yield piece
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _work(self, request: Request, told: asyncio.Queue[bytes | None]) -> None:
        problem: ProblemError | None = None
        try:
            async for lines in _chunks(request):
                told.put_nowait(b"".join(await self._stored(lines)))
        except ProblemError as error:
            problem = error
        except EventSourcingError as error:
            problem = problem_of(error)
        except ClientDisconnect:
            return  # nobody is there to be told
        finally:
            why = {} if problem is None else {"problem": problem_body(problem)}
            end = {"status": "stopped" if problem else "done", "resume_from": self.next_line}
            told.put_nowait(orjson.dumps({**end, **self.counts, **why}) + b"\n")
            told.put_nowait(None)

    async def _stored(self, lines: Sequence[bytes]) -> list[bytes]:
        """Store some lines; their results. Raises what leaves it open what was stored."""
        results: list[dict[str, Any] | None] = [None] * len(lines)
        together: list[tuple[int, BaseEvent]] = []
        for place, line in enumerate(lines):
            try:
                body = _parsed(line)
                if body is None:
                    continue
                draft = body.draft(otherwise=derived_event_id(self.token, self.next_line + place))
            except (ProblemError, EventSourcingError) as error:
                results[place] = _refused(error)
                continue
            if body.expected_version == ANY:
                together.append((place, draft))
                continue
            await self._append(together, results)
            together = []
            results[place] = await self._append_one(draft, body.expected_version)
        await self._append(together, results)
        told = [
            orjson.dumps({"line": self.next_line + place, **result}) + b"\n"
            for place, result in enumerate(results)
            if result is not None
        ]
        for result in filter(None, results):
            self.counts[result["status"]] += 1
        self.next_line += len(lines)
        return told

    async def _append(
        self, together: Sequence[tuple[int, BaseEvent]], results: list[dict[str, Any] | None]
    ) -> None:
        """Store drafts in one transaction, or each by itself when together they are refused."""
        try:
            events, found = await self.store.append([draft for _, draft in together])
        except UnavailableError:
            raise
        except EventSourcingError:
            for place, draft in together:
                results[place] = await self._append_one(draft, ANY)
            return
        for (place, _), event in zip(together, events, strict=True):
            results[place] = _result(event, known=event.event_id in found)

    async def _append_one(self, draft: BaseEvent, expected_version: int) -> dict[str, Any]:
        try:
            (event,), found = await self.store.append([draft], expected_version=expected_version)
        except UnavailableError:
            raise
        except EventSourcingError as error:
            return _refused(error)
        return _result(event, known=bool(found))


async def _chunks(request: Request) -> AsyncIterator[list[bytes]]:
    """The lines of a body, at most 500 or 8 MiB at a time. Raises a problem for what ends the call early."""
    ready: list[bytes] = []
    count = size = 0
    async for line in _lines(request):
        if count == MAX_LINES:
            raise ProblemError(TOO_LARGE, f"One call holds at most {MAX_LINES} lines; send the rest.")
        ready.append(line)
        count, size = count + 1, size + len(line)
        if len(ready) == CHUNK or size > MAX_BATCH_BYTES or count == MAX_LINES:
            yield ready
            ready, size = [], 0
    yield ready


async def _lines(request: Request) -> AsyncIterator[bytes]:
    rest, stream = b"", request.stream()
    while True:
        try:
            async with asyncio.timeout(BODY_S):
                piece = await anext(stream, None)
        except TimeoutError:
            raise ProblemError(TOO_SLOW, TOO_SLOW.meaning) from None
        *lines, rest = (rest + (piece or b"")).split(b"\n")
        if len(rest) > MAX_BODY_BYTES or any(len(line) > MAX_BODY_BYTES for line in lines):
            raise ProblemError(TOO_LARGE, f"A line may hold {MAX_BODY_BYTES} bytes.")
        for line in lines:
            yield line
        if piece is None:
            break
    if rest:
        yield rest


def _parsed(line: bytes) -> EventBody | None:
    """The event of a line; None for an empty one. Raises a problem."""
    if not line.strip():
        return None
    try:
        value = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise ProblemError(MALFORMED, f"Not JSON: {error}.") from None
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH and is_deeper(value, MAX_DEPTH):
        raise ProblemError(MALFORMED, f"Objects and lists may lie {MAX_DEPTH} deep in one another.")
    try:
        return EventBody.model_validate(value)
    except ValidationError as error:
        raise validation_problem(error) from None


def _result(event: Any, *, known: bool) -> dict[str, Any]:
    return {
        "status": "known" if known else "stored",
        "event_id": str(event.event_id),
        "event_version": event.event_version,
        "position": event.position,
    }


def _refused(error: ProblemError | EventSourcingError) -> dict[str, Any]:
    problem = problem_of(error) if isinstance(error, EventSourcingError) else error
    return {"status": "refused", "problem": problem_body(problem)}
