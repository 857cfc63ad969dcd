"""The operators' calls on dead letters: look, give them to their handlers again, or discard them."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple
from urllib.parse import quote
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.access import Caller, CurrentCaller, Scope, needs
from api.dead_letter_schemas import (
    DeadLetterFilters,
    DeadLetterOut,
    DeadLettersOut,
    DiscardBody,
    DiscardOut,
    RedriveBody,
    RedriveOut,
    letter_id,
)
from api.dependencies import JobsIfNeeded, OpenStore, OpenSystem, accepted, json_response, reach
from api.idempotency import DoneOnce
from api.jobs import started, submit
from api.launcher import Launcher
from api.paging import cursor_after, key_before, next_link
from api.problems import invalid_field
from api.requests import JsonRoute
from api.schemas import problems
from eventsourcing.acts import recall, remember
from eventsourcing.canonical import encode
from eventsourcing.dead_letter_queue import DeadLetterQueue, Discarded
from eventsourcing.dead_letters import owner_of, page_of_letters
from eventsourcing.personal import DEAD_LETTER, MASK, masked_event
from eventsourcing.redrive import ParkedSelection
from eventsourcing.wording import counted
from eventsourcing.worker import group_handlers

CHANGE = problems(400, 406, 409, 413, 415, 422, 503)
BEHIND_CAP = 100_000
"""How many events behind discarded ones are re-driven at once at most."""

COUNTED = 10_000
"""How many aggregates one call counts at most; a re-drive takes whatever its cap allows."""

dead_letters = APIRouter(route_class=JsonRoute, tags=["operations"])


@dead_letters.get(
    "/dead-letters",
    response_model=DeadLettersOut,
    responses=problems(406, 422, 503),
    openapi_extra=needs(Scope.ADMIN),
)
async def list_dead_letters(
    request: Request, store: OpenStore, caller: CurrentCaller, filters: Annotated[DeadLetterFilters, Query()]
) -> Response:
    """What consumer groups gave up and what waits behind it, in pages; one of a rare type may be short."""
    await reach(store, filters.min_position)
    rows, after = await page_of_letters(
        store.storage,
        group=filters.consumer_group,
        aggregate_id=filters.aggregate_id,
        event_type=filters.event_type,
        after=key_before(filters),
        limit=filters.limit,
    )
    cursor = None if after is None else cursor_after(after, filters)
    content = {"dead_letters": [_shown(key, row, caller) for key, row in rows]}
    return json_response(encode(content), headers=next_link(request, cursor))


@dead_letters.post(
    "/dead-letters/redrive",
    status_code=202,
    response_model=RedriveOut,
    responses={200: {"model": RedriveOut, "description": "Counted, or nothing to do"}, **CHANGE},
    openapi_extra=needs(Scope.ADMIN),
)
async def redrive_dead_letters(
    system: OpenSystem, jobs: JobsIfNeeded, caller: CurrentCaller, body: RedriveBody, once: DoneOnce
) -> Response:
    """Give parked aggregates to their handlers again, as a job: each with its whole queue, in order. At most
    10,000 aggregates are counted."""
    selection = body.selection()

    async def start(token: UUID) -> Response:
        queue = DeadLetterQueue(system.store)
        await system.store.initialize()
        async with system.store.storage.transaction() as transaction:
            counts = await recall(transaction, token)
        if counts is None:
            parked = await queue.preview(selection, limit=COUNTED)
            counts = {"aggregates": len(parked), "letters": sum(row["letters"] for row in parked)}
            if body.dry_run or not parked:
                status = "counted" if body.dry_run else "nothing to do"
                message = f"{counted(len(parked), 'parked aggregate')} would be re-driven"
                return json_response(orjson.dumps(_told(selection, status, counts, message)))
            _require_handlers(selection)
            async with system.store.storage.transaction() as transaction:
                await remember(transaction, token, counts)
        run_id = await started(launcher := await jobs(), token)
        if run_id is None:
            await queue.require_free(selection.group)
            asked = _Asked(caller.name, body.reason, body.cap, token)
            run_id = await _redrive(launcher, selection, asked)
        message = f"Re-drive of {counted(counts['aggregates'], 'aggregate')} started"
        place = f"/dead-letters?consumer_group={quote(selection.group, safe='')}"
        return accepted(_told(selection, "started", counts, message, run_id), place)

    return await once(start)


@dead_letters.post(
    "/dead-letters/discard", response_model=DiscardOut, responses=CHANGE, openapi_extra=needs(Scope.ADMIN)
)
async def discard_dead_letters(
    system: OpenSystem, jobs: JobsIfNeeded, caller: CurrentCaller, body: DiscardBody, once: DoneOnce
) -> Response:
    """Give up the failed events in front of parked aggregates; the reason stands in the audit. What waits
    behind them is re-driven as a job."""
    selection, keys = body.selection(), body.keys()

    async def work(token: UUID) -> Response:
        queue = DeadLetterQueue(system.store)
        would = await queue.would_discard(
            selection, letters=keys, whole_queue=body.whole_queue, limit=body.limit
        )
        if body.dry_run:
            message = f"{counted(would.letters, 'dead letter')} would be discarded"
            return json_response(orjson.dumps(_told(selection, "counted", _counts(would), message)))
        if would.behind:  # nothing is discarded whose queue could not go on
            _require_handlers(selection)
            await jobs()
        done = await queue.discard_selected(
            selection,
            by=caller.name,
            why=body.reason,
            letters=keys,
            whole_queue=body.whole_queue,
            limit=body.limit,
            token=token,
        )
        run_id = None
        if done.behind:
            run_id = await started(launcher := await jobs(), token)
        if done.behind and run_id is None:
            behind = ParkedSelection(selection.group, aggregates=done.behind)
            run_id = await _redrive(launcher, behind, _Asked(caller.name, body.reason, BEHIND_CAP, token))
        message = f"{counted(done.letters, 'dead letter')} discarded"
        return json_response(orjson.dumps(_told(selection, "discarded", _counts(done), message, run_id)))

    return await once(work)


class _Asked(NamedTuple):
    """Who asks for a re-drive, why, of how many events at most, and in which request."""

    by: str
    why: str
    cap: int
    token: UUID


async def _redrive(jobs: Launcher, selection: ParkedSelection, asked: _Asked) -> str:
    """Start the job; its run's id. Raises a 503 problem when it does not start."""
    given = {
        "group": selection.group,
        "aggregate_id": selection.aggregate_id,
        "aggregates": list(selection.aggregates),
        "event_type": selection.event_type,
        "fingerprint": selection.fingerprint,
        "cap": asked.cap,
        "dry_run": False,
        "by": asked.by,
        "why": asked.why,
    }
    config = {name: value for name, value in given.items() if value is not None}
    run_config = {"ops": {"redrive_dead_letters": {"config": config}}}
    tags = {"consumer_group": selection.group, "source": "rest"}
    return await submit(jobs, "redrive", run_config, tags, asked.token)


def _require_handlers(selection: ParkedSelection) -> None:
    if not group_handlers(selection.group):
        raise invalid_field("consumer_group", "names a group of which no handler is known here")


def _told(
    selection: ParkedSelection, status: str, counts: dict[str, int], message: str, run_id: str | None = None
) -> dict[str, Any]:
    told: dict[str, Any] = {"consumer_group": selection.group, "status": status, **counts}
    return told | {"message": message, "dagster_run_id": run_id}


def _counts(result: Discarded) -> dict[str, int]:
    return {"letters": result.letters, "released": result.released, "behind": len(result.behind)}


def _shown(key: str, row: dict[str, Any], caller: Caller) -> dict[str, Any]:
    """A letter as its caller may see it."""
    facts = {name: row.get(name) for name in DeadLetterOut.model_fields}
    facts |= {"id": letter_id(key), "consumer_group": owner_of(key)[0]}
    if caller.sees_personal_data:
        return facts
    hidden = {name: MASK for name in DEAD_LETTER if facts[name] is not None}
    return {**facts, **hidden, "event": masked_event(row["event"])}
