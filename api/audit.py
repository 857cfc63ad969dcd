"""`GET /audit`: who did and reached what, newest first."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.access import Scope, needs
from api.dependencies import OpenStore, json_response
from api.paging import MAX_SCANNED, cursor_after, key_before, next_link
from api.requests import JsonRoute
from api.schemas import Moment, PageParams, problems
from eventsourcing.audit import audit_entries, first_id_of
from eventsourcing.canonical import encode

audit = APIRouter(route_class=JsonRoute, tags=["operations"])


class AuditFilters(PageParams):
    """Which entries: all conditions given must hold."""

    by: Annotated[str, Query(max_length=200)] | None = None
    """Who, as entries say it: `key:{name}/{id}`, `token:{subject}`, or an operator's name."""
    action: Annotated[str, Query(max_length=100)] | None = None
    """An operation id, as `create_replay`, or an action of the command line."""
    from_timestamp: Moment | None = None
    to_timestamp: Moment | None = None


@audit.get("/audit", response_model=None, responses=problems(406, 422, 503), openapi_extra=needs(Scope.ADMIN))
async def audit_log(
    request: Request, store: OpenStore, filters: Annotated[AuditFilters, Query()]
) -> Response:
    """Every administrative act and every access, newest first, in pages; a page of rare entries may be short."""
    await store.initialize()
    end = filters.to_timestamp and first_id_of(filters.to_timestamp + timedelta(milliseconds=1))
    start = first_id_of(filters.from_timestamp) if filters.from_timestamp else ""
    before, found, scanned = key_before(filters) or end, list[dict[str, object]](), 0
    while scanned < MAX_SCANNED:
        entries = await audit_entries(store.storage, limit=filters.limit + 1, before=before)
        for entry in entries:
            if entry["id"] < start:
                return json_response(encode({"audit": found}))
            if len(found) == filters.limit:
                break
            before = entry["id"]
            if filters.by in (None, entry["by"]) and filters.action in (None, entry["action"]):
                found.append(entry)
        else:
            if len(entries) <= filters.limit:
                return json_response(encode({"audit": found}))
            scanned += len(entries)
            continue
        break
    headers = next_link(request, cursor_after(str(before), filters))
    return json_response(encode({"audit": found}), headers=headers)
