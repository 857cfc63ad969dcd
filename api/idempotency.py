"""A POST with an `Idempotency-Key` is done once: sent again, it gets the answer that was given.

States of a key: held → answered, gone after 24 h. A hold is given up when the request fails. It is taken
over at once when the process that holds it is known to be gone, and else once its time is over. Whoever takes
over works with the token of the first, by which a route finds what was done already. A refusal (4xx) has done
nothing, and frees its key.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Header, HTTPException, Request
from fastapi.responses import Response

from api.access import Scope, caller_of
from api.dependencies import OpenStore
from api.problems import FORBIDDEN, IN_FLIGHT, KEY_REUSED, ProblemError, problem_of
from eventsourcing.canonical import state_hash
from eventsourcing.errors import EventSourcingError
from eventsourcing.events import new_event_id
from eventsourcing.storage.base import StateStorage, StateTable
from resources.migration_journal import is_gone, this_process

log = logging.getLogger("esm.api.idempotency")

KEYS = StateTable("idempotency-keys")
"""Key: caller, method, path and the caller's key. Value: {request, token, since, held_until, process}, and
the answer once there is one."""

KEPT = timedelta(hours=24)
HELD_S = 90.0
"""How long a request may take before a repeat takes it over; longer than any answer is waited for."""

_PURGE_S = 600.0
_SERVER_ERROR = 500
_SEEN_BEFORE = "It was done; its answer may hold personal data, which this caller may not see any more."

IdempotencyKey = Annotated[str | None, Header(pattern=r"^[\x21-\x7e]{1,255}$")]
"""What a caller names a request by."""

Work = Callable[[UUID], Awaitable[Response]]
"""Does what a request asks for. The token, time-ordered, is the same whenever the request is tried again."""


class Once:
    """One request and its key. Without a key, calling it only does the work."""

    _purged_at = 0.0

    def __init__(
        self, storage: StateStorage, place: str, request: str, *, sees_personal: bool = False
    ) -> None:
        self._storage, self._place, self._request = storage, place, request
        self._sees_personal = sees_personal

    async def __call__(self, work: Work, *, held_s: float = HELD_S) -> Response:
        """Do the work, or return the answer that it came to before, marked `Idempotency-Replayed`.

        `held_s` bounds how long the work takes. Raises a 422 problem for a key that another body has,
        409 while the same request is being worked on, 403 for an answer given when the caller could see
        personal data and cannot any more; then nothing is done.
        """
        if not self._place:
            return await work(new_event_id())
        now = datetime.now(UTC)
        held = await self._hold(now, held_s)
        if (answer := held.get("answer")) is not None:
            if answer.get("personal") and not self._sees_personal:
                raise ProblemError(FORBIDDEN, _SEEN_BEFORE, members={"needed_scope": Scope.READ_PERSONAL})
            headers = {**answer["headers"], "idempotency-replayed": "true"}
            return Response(answer["body"], answer["status"], headers)
        try:
            response = await work(UUID(held["token"]))
        except BaseException as error:
            await self._release(held, refused=_is_refusal(error))
            raise
        body, headers = bytes(response.body).decode(), dict(response.headers)
        headers.pop("content-length", None)
        kept = {"status": response.status_code, "headers": headers, "body": body}
        kept["personal"] = self._sees_personal
        await self._settle(held, {**held, "answer": kept})
        await self._purge()
        return response

    async def _hold(self, now: datetime, held_s: float) -> dict[str, Any]:
        """The key's value: with the answer, or held by this request from now on."""
        until = now + timedelta(seconds=held_s)
        held = {"since": now, "held_until": until, "process": _this_process()}
        fresh = {"request": self._request, "token": str(new_event_id()), **held}
        async with self._storage.transaction() as transaction:
            if await transaction.add(KEYS, self._place, fresh):
                return fresh
            row: dict[str, Any] = await transaction.get(KEYS, self._place, lock=True) or fresh
            if _moment(row["since"]) + KEPT > now:
                if row["request"] != self._request:
                    raise ProblemError(KEY_REUSED, KEY_REUSED.meaning)
                if row.get("answer") is not None:
                    return row
                if _moment(row["held_until"]) > now and not is_gone(row.get("process")):
                    raise ProblemError(IN_FLIGHT, IN_FLIGHT.meaning, headers={"Retry-After": "1"})
                fresh = {**row, **held, "since": row["since"]}
            await transaction.put(KEYS, self._place, fresh)
        return fresh

    async def _release(self, held: dict[str, Any], *, refused: bool) -> None:
        """Free the key after a refusal; after a failure let the next take over, for work may be done."""
        await self._settle(held, None if refused else {**held, "held_until": datetime.now(UTC)})

    async def _settle(self, held: dict[str, Any], value: dict[str, Any] | None) -> None:
        """Write the key's value, unless another request has taken it over."""
        async with self._storage.transaction() as transaction:
            row = await transaction.get(KEYS, self._place, lock=True)
            if row is None or _moment(row["held_until"]) != _moment(held["held_until"]):
                log.warning("a request took longer than it held its key")
            elif value is None:
                await transaction.delete(KEYS, self._place)
            else:
                await transaction.put(KEYS, self._place, value)

    async def _purge(self) -> None:
        """Now and then remove keys past their time."""
        now = time.monotonic()
        if now - Once._purged_at >= _PURGE_S:
            Once._purged_at = now
            async with self._storage.transaction() as transaction:
                await transaction.purge(KEYS, older_than_s=KEPT.total_seconds())


async def _once(
    request: Request,
    store: OpenStore,
    idempotency_key: IdempotencyKey = None,
) -> Once:
    if idempotency_key is None:
        return Once(store.storage, "", "")
    await store.initialize()
    caller = caller_of(request)
    place = "\x1f".join((caller.name, request.method, request.scope["path"], idempotency_key))
    asked = {"query": request.scope["query_string"].decode("latin-1"), "body": None}
    if await request.body():
        asked["body"] = await request.json()
    asked_for = state_hash(asked, field="request")
    return Once(store.storage, place, asked_for, sees_personal=caller.sees_personal_data)


DoneOnce = Annotated[Once, Depends(_once)]
"""Of a POST route: `return await once(work)`. Callers have keys of their own."""


@cache
def _this_process() -> dict[str, Any]:
    return this_process()


def _is_refusal(error: BaseException) -> bool:
    if isinstance(error, EventSourcingError):
        error = problem_of(error)
    return isinstance(error, HTTPException) and error.status_code < _SERVER_ERROR


def _moment(value: Any) -> datetime:
    """A moment as it is kept in this process, or as it comes back from a storage."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)
