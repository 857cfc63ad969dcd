"""What is known of every request: its id, in every line of the log and in the answer, and how long it took.

A caller's `X-Request-Id` is taken over when it is one plain word; else the request gets an id here.
"""

from __future__ import annotations

import logging
import re
import time
from functools import cache
from typing import TYPE_CHECKING
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.limits import SEAT
from eventsourcing.logs import about
from eventsourcing.metrics import instruments

if TYPE_CHECKING:
    from prometheus_client import Histogram

log = logging.getLogger("esm.api.requests")

HEADER = "X-Request-Id"

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", re.ASCII)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_NO_ROUTE = "none"

_BUFFERED_BYTES = 64 * 1024
"""Of an answer so much may wait to be read after it has ended."""

_PLAIN_FORM = (b"x-content-type-options", b"nosniff")
"""A browser takes an answer for what it says it is, not for a script that it resembles."""


class Tracking:
    """The outermost layer of a service."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request under its id; measure it until its answer has ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _PLAIN.fullmatch(given) else str(uuid4())
        began, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
                message["headers"].append(_PLAIN_FORM)
            elif len(message["body"]) > _BUFFERED_BYTES and not message.get("more_body"):
                await send({**message, "more_body": True})
                message = {"type": message["type"], "body": b""}  # is sent once the client has taken the rest
            await send(message)

        with about(request_id=request_id):
            try:
                await self._app(scope, receive, answer)
            finally:
                if (give_back := scope.get(SEAT)) is not None:
                    give_back()
                _measure(scope, status, time.perf_counter() - began)


@cache
def _seconds(method: str, route: str, status: int) -> Histogram:
    return instruments().http_seconds.labels(method, route, str(status))


def _measure(scope: Scope, status: int, seconds: float) -> None:
    """By the template of the path, never by the path: that names people, and has no bound."""
    method = scope["method"] if scope["method"] in _METHODS else "other"
    route = getattr(scope.get("route"), "path", _NO_ROUTE)
    _seconds(method, route, status).observe(seconds)
    level = logging.WARNING if status >= 500 else logging.DEBUG
    log.log(level, "%s %s answered %d in %.1f ms", method, route, status, seconds * 1000)
