"""`GET /audit`: who did and reached what, newest first."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.access import Scope, needs
from api.dependencies import OpenStore, json_response, reach
from api.paging import MAX_SCANNED, cursor_after, key_before, next_link
from api.requests import JsonRoute
from api.schemas import Moment, PageParams, problems
from eventsourcing.audit import audit_entries, first_id_of
from eventsourcing.canonical import encode
from eventsourcing.storage.base import Storage

_READ = 500

audit = APIRouter(route_class=JsonRoute, tags=["operations"])


class AuditFilters(PageParams):
    """Which entries: all conditions given must hold."""

    by: Annotated[str, Query(max_length=300)] | None = None
    """Who, as entries say it: `key:{name}/{id}`, `token:{subject}`, or an operator's name."""
    action: Annotated[str, Query(max_length=100)] | None = None
    """An operation id, as `create_replay`, or an action of the command line."""
    from_timestamp: Moment | None = None
    to_timestamp: Moment | None = None


@audit.get("/audit", response_model=None, responses=problems(406, 422, 503), openapi_extra=needs(Scope.ADMIN))
async def audit_log(
    request: Request, store: OpenStore, filters: Annotated[AuditFilters, Query()]
) -> Response:
    """Every administrative act and every access, newest first, in pages; one of rare entries may be short."""
    await reach(store, filters.min_position)
    page, cursor = await _page(store.storage, filters)
    return json_response(encode({"audit": page}), headers=next_link(request, cursor))


async def _page(storage: Storage, filters: AuditFilters) -> tuple[list[dict[str, Any]], str | None]:
    first = first_id_of(filters.from_timestamp) if filters.from_timestamp else ""
    before = key_before(filters)
    if before is None and filters.to_timestamp is not None:
        before = first_id_of(filters.to_timestamp + timedelta(milliseconds=1))
    page: list[dict[str, Any]] = []
    scanned = 0
    while scanned < MAX_SCANNED:
        entries = await audit_entries(storage, limit=_READ, before=before)
        for entry in entries:
            if entry["id"] < first:
                return page, None
            if len(page) == filters.limit:
                return page, cursor_after(str(before), filters)
            before = entry["id"]
            if filters.by in (None, entry["by"]) and filters.action in (None, entry["action"]):
                page.append(entry)
        if len(entries) < _READ:
            return page, None
        scanned += len(entries)
    return page, cursor_after(str(before), filters)
