"""Publishing events: one, or a batch that is stored whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import orjson
from fastapi import APIRouter, Body, Header
from fastapi.responses import Response

from api.access import CurrentCaller, Scope, needs
from api.dependencies import OpenStore, event_json, json_response
from api.idempotency import DoneOnce
from api.problems import PRECONDITION_FAILED, ProblemError, invalid_field, problem_of
from api.requests import BatchRoute, JsonRoute
from api.schemas import BatchOut, EventBody, EventOut, problems
from eventsourcing import (
    ANY,
    BaseEvent,
    ConcurrencyError,
    DuplicateEventError,
    EventSourcingError,
    InvalidEventError,
)
from eventsourcing.events import derived_event_id
from eventsourcing.logs import note

HELD_S = 5.0
"""After how long the repeat of a request takes it over. It may be early: both store the same event ids."""

WRITE = problems(400, 406, 408, 409, 413, 415, 422, 503)

publishing = APIRouter(route_class=JsonRoute, tags=["events"])
batches = APIRouter(route_class=BatchRoute, tags=["events"])

IfMatch = Annotated[str | None, Header(pattern=r'^"\d{1,9}"$', examples=['"3"'])]
"""The ETag of the aggregate's last event: its version."""


@publishing.post(
    "/events",
    status_code=201,
    response_model=EventOut,
    responses={200: {"model": EventOut, "description": "Stored before"}, **WRITE, **problems(412)},
    openapi_extra=needs(Scope.APPEND),
)
async def publish_event(
    store: OpenStore, caller: CurrentCaller, once: DoneOnce, body: EventBody, if_match: IfMatch = None
) -> Response:
    """Store one event. The same event_id again stores nothing and answers 200 with the stored event.

    `If-Match` is `expected_version` as a header, and answers 412 when the aggregate is at another version.
    """
    expected = body.expected_version if if_match is None else _version_of(if_match, body)

    async def publish(token: UUID) -> Response:
        draft = body.draft(otherwise=token)
        note(event_id=draft.event_id, correlation_id=draft.correlation_id)
        try:
            (event,), found = await store.append([draft], expected_version=expected)
        except ConcurrencyError as error:
            raise _refused(error, conditional=if_match is not None) from None
        status = 200 if found and body.event_id is not None else 201
        headers = {
            "Location": f"/events/{event.event_id}",
            "ES-Position": str(event.position),
            "ETag": f'"{event.event_version}"',
        }
        return json_response(event_json(event, masked=not caller.sees_personal_data), status, headers)

    return await once(publish, held_s=HELD_S)


@batches.post(
    "/events/batch",
    status_code=201,
    response_model=BatchOut,
    responses=WRITE,
    openapi_extra=needs(Scope.APPEND),
)
async def publish_batch(
    store: OpenStore, once: DoneOnce, body: Annotated[list[EventBody], Body(min_length=1)]
) -> Response:
    """Store all events or none. An event stored before is not stored again."""
    expected = _expected_versions(body)

    async def publish(token: UUID) -> Response:
        drafts = _drafts(body, token)
        try:
            recorded, _ = await store.append(drafts, expected_version=expected or ANY)
        except (ConcurrencyError, DuplicateEventError) as error:
            raise problem_of(error, index=_index_of(error, drafts)) from None
        ids = [event.event_id for event in recorded]
        answer = {"message": f"Published {len(ids)} events successfully", "event_ids": ids}
        headers = {"ES-Position": str(max(event.position for event in recorded))}
        return json_response(orjson.dumps(answer, default=str), 201, headers)

    return await once(publish, held_s=HELD_S)


def _version_of(if_match: str, body: EventBody) -> int:
    version = int(if_match.strip('"'))
    if body.expected_version not in (ANY, version):
        raise invalid_field("If-Match", "contradicts expected_version", where="header")
    return version


def _refused(error: ConcurrencyError, *, conditional: bool) -> ProblemError:
    problem = problem_of(error)
    if not conditional:
        return problem
    return ProblemError(PRECONDITION_FAILED, str(problem.detail), members=problem.members)


def _drafts(body: Sequence[EventBody], token: UUID) -> list[BaseEvent]:
    drafts: list[BaseEvent] = []
    for index, entry in enumerate(body):
        try:
            drafts.append(entry.draft(otherwise=derived_event_id(token, index)))
        except InvalidEventError as error:
            raise problem_of(error, index=index) from None
    return drafts


def _expected_versions(body: Sequence[EventBody]) -> dict[str, int]:
    """The version each aggregate must be at before the batch. Raises a 422 problem when two entries
    of one aggregate contradict each other."""
    expected: dict[str, int] = {}
    before: dict[str, int] = {}
    for index, entry in enumerate(body):
        place = before.get(entry.aggregate_id, 0)
        before[entry.aggregate_id] = place + 1
        if entry.expected_version == ANY:
            continue
        start = entry.expected_version - place
        if start < 0 or expected.setdefault(entry.aggregate_id, start) != start:
            error = InvalidEventError("contradicts an earlier event of the batch", field="expected_version")
            raise problem_of(error, index=index)
    return expected


def _index_of(error: EventSourcingError, drafts: Sequence[BaseEvent]) -> int | None:
    """The first event of the batch that a conflict is about."""
    for index, draft in enumerate(drafts):
        if isinstance(error, ConcurrencyError) and draft.aggregate_id == error.aggregate_id:
            return index
        if isinstance(error, DuplicateEventError) and draft.event_id == error.event_id:
            return index
    return None
