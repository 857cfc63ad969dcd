"""Pages: opaque cursors, the Link to the next page, and the two things that are read in pages.

A cursor holds the key of the last entry and a digest of the filters, so that it continues the listing
it came from and no other. Pages of events in position order end at the horizon: whoever has followed
the links to the end has missed nothing below the last event seen.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request

from api.dependencies import event_json
from api.problems import ProblemError, invalid_field
from api.schemas import EventFilters, PageParams
from eventsourcing import EventStore
from eventsourcing.readmodels import ReadModel
from eventsourcing.storage.base import Storage

MAX_PAGE_BYTES = 4 * 1024 * 1024
"""A page of events ends with the one that goes beyond this."""

MAX_SCANNED = 10_000
"""How many keys one page of a read model looks at: taken-back records leave empty ones behind."""

_READ = 100


def cursor_after(key: str, params: PageParams) -> str:
    """The cursor of the page after the entry with this key."""
    return base64.urlsafe_b64encode(f"{_digest(params)}:{key}".encode()).decode().rstrip("=")


def key_before(params: PageParams) -> str | None:
    """The key that the page begins after; None for the first page. Raises a 422 problem."""
    if params.cursor is None:
        return None
    try:
        padded = params.cursor + "=" * (-len(params.cursor) % 4)
        digest, _, key = base64.urlsafe_b64decode(padded.encode("ascii")).decode().partition(":")
    except ValueError:
        raise _bad_cursor() from None
    if digest != _digest(params) or "\x00" in key:
        raise _bad_cursor()
    return key


def next_link(request: Request, cursor: str | None) -> dict[str, str]:
    """The headers of a page that is followed by another one, or none (RFC 8288)."""
    if cursor is None:
        return {}
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    path = quote(request.scope.get("root_path", "") + request.scope["path"])
    return {"Link": f'<{path}?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'}


async def page_of_events(
    store: EventStore, filters: EventFilters, *, masked: bool
) -> tuple[list[bytes], str | None]:
    """One page of events as JSON, and the cursor of the next page when there is one.

    One aggregate is read along its versions and needs no bound: versions appear in order. A page of
    large events may be short.
    """
    query, key = filters.query(), _number(key_before(filters))
    up = not query.backwards
    if query.aggregate_id is not None:
        name = "event_version"
        if key is not None and up:
            query = query.where(from_version=max(key + 1, query.from_version or 0))
        elif key is not None:
            query = query.where(to_version=min(key - 1, query.to_version or key))
    else:
        name = "position"
        if up:
            query = query.where(after_position=key, to_position=await store.horizon())
        elif key is not None:
            query = query.where(to_position=key - 1)
    page: list[bytes] = []
    size, last = 0, None
    async for event in store.read(query.where(limit=filters.limit + 1), batch_size=_READ):
        if len(page) == filters.limit or size > MAX_PAGE_BYTES:
            return page, cursor_after(str(getattr(last, name)), filters)
        page.append(event_json(event, masked=masked))
        size, last = size + len(page[-1]), event
    return page, None


async def page_of_states(
    storage: Storage, model: ReadModel, params: PageParams
) -> tuple[dict[str, Any], str | None]:
    """One page of a read model by key, and the cursor of the next page when there is one.

    Keys whose state is empty are left out; a page of almost only such keys may be short.
    """
    page: dict[str, Any] = {}
    after, scanned = key_before(params), 0
    while scanned < MAX_SCANNED:
        rows = await model.page(storage, after=after, limit=params.limit + 1)
        for key, state in rows:
            if state and len(page) == params.limit:
                return page, cursor_after(str(after), params)
            if state:
                page[key] = state
            after = key
        if len(rows) <= params.limit:
            return page, None
        scanned += len(rows)
    return page, cursor_after(str(after), params)


def _digest(params: PageParams) -> str:
    filters = params.model_dump_json(exclude={"cursor", "limit", "min_position"})
    return hashlib.blake2s(f"{type(params).__name__}{filters}".encode(), digest_size=6).hexdigest()


def position_before(params: PageParams) -> int | None:
    """The position that the page begins after; None for the first page. Raises a 422 problem."""
    return _number(key_before(params))


def _number(key: str | None) -> int | None:
    if key is None:
        return None
    if not (key.isascii() and key.isdigit() and len(key) < 19):
        raise _bad_cursor()
    return int(key)


def _bad_cursor() -> ProblemError:
    return invalid_field("cursor", "is not a cursor of this listing", where="query")
