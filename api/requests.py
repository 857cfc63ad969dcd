"""What a request must be before a route sees it: JSON, strict, bounded, and wanting what we answer.

FastAPI's own reading accepts NaN and unbounded bodies, and answers some faults outside its error
handlers; these routes read the body themselves, so that every fault becomes a problem.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from api.access import needed_scope
from api.doors import Doors
from api.problems import MALFORMED, NOT_ACCEPTABLE, TOO_LARGE, TOO_SLOW, UNSUPPORTED_MEDIA, ProblemError
from api.schemas import problems

MAX_BODY_BYTES = 1024 * 1024
MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_BATCH_EVENTS = 1000
MAX_DEPTH = 32
"""How deep objects and lists of a body may lie in one another."""

BODY_S = 30.0
"""How long a body may take to arrive."""


_CLOSING = {"Connection": "close"}


class JsonRequest(Request):
    """A request whose body is one JSON value within a limit."""

    max_bytes = MAX_BODY_BYTES
    max_items: int | None = None

    async def body(self) -> bytes:
        """Read the body. Raises a 413 problem as soon as it is announced or found to be too large,
        a 415 problem for anything but plain JSON, and 408 when it takes longer than 30 seconds."""
        if not hasattr(self, "_body"):
            announced = self.headers.get("content-length", "")
            if announced.isdecimal() and int(announced) > self.max_bytes:
                raise self._too_large()
            try:
                async with asyncio.timeout(BODY_S):
                    self._body = await self._read()
            except TimeoutError:
                raise ProblemError(TOO_SLOW, TOO_SLOW.meaning, headers=_CLOSING) from None
        if self._body and not self._is_json():
            raise ProblemError(UNSUPPORTED_MEDIA, UNSUPPORTED_MEDIA.meaning)
        return self._body

    async def _read(self) -> bytes:
        read = bytearray()
        async for chunk in self.stream():
            read += chunk
            if len(read) > self.max_bytes:
                raise self._too_large()
        return bytes(read)

    async def json(self) -> Any:
        """Parse the body. Raises a 400 problem: NaN, lone surrogates and deep nesting are refused."""
        try:
            body = await self.body()
            value = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise ProblemError(MALFORMED, f"Not JSON: {error}.") from None
        if body.count(b"{") + body.count(b"[") > MAX_DEPTH and is_deeper(value, MAX_DEPTH):
            raise ProblemError(MALFORMED, f"Objects and lists may lie {MAX_DEPTH} deep in one another.")
        if self.max_items is not None and isinstance(value, list) and len(value) > self.max_items:
            raise ProblemError(TOO_LARGE, f"A batch holds at most {self.max_items} events.")
        return value

    def _is_json(self) -> bool:
        media = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        plain = media.startswith("application/") and (media.endswith(("/json", "+json")))
        return plain and self.headers.get("content-encoding", "identity") == "identity"

    def _too_large(self) -> ProblemError:
        return ProblemError(
            TOO_LARGE,
            f"The body may hold {self.max_bytes} bytes.",
            headers=_CLOSING,
            members={"max_bytes": self.max_bytes},
        )


class BatchRequest(JsonRequest):
    """A request whose body is a batch of events."""

    max_bytes = MAX_BATCH_BYTES
    max_items = MAX_BATCH_EVENTS


class JsonRoute(APIRoute):
    """A route that answers JSON and takes a JSON body, if it takes one.

    Its declaration names the scope that it needs (see access), and the caller is admitted before
    anything of the request is read. Raises TypeError when it names none.
    """

    produces: ClassVar[str] = "application/json"
    request_class: ClassVar[type[JsonRequest]] = JsonRequest

    def __init__(self, path: str, endpoint: Callable[..., Any], **declared: Any) -> None:
        self.scope = needed_scope(declared.get("openapi_extra"), path)
        if self.scope is not None:
            declared["responses"] = {**(declared.get("responses") or {}), **problems(401, 403, 429)}
        super().__init__(path, endpoint, **declared)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Admit the caller, check what is accepted, and hand on a strict request."""
        handle, needed = super().get_route_handler(), self.scope

        async def strictly(request: Request) -> Response:
            if not _accepts(request.headers.get("accept", "*/*"), self.produces):
                raise ProblemError(NOT_ACCEPTABLE, f"This path answers {self.produces}.")
            return await handle(self.request_class(request.scope, request.receive))

        async def admitted(request: Request) -> Response:
            doors: Doors = request.app.state.doors
            assert needed is not None
            return await doors.through(request, strictly, scope=needed, action=self.name, route=self.path)

        return strictly if needed is None else admitted


class BatchRoute(JsonRoute):
    """A route that takes a batch of events."""

    request_class = BatchRequest


class NdjsonRoute(JsonRoute):
    """A route that takes and answers lines of JSON; it reads the body as it comes."""

    produces = "application/x-ndjson"


class TextRoute(JsonRoute):
    """A route that answers plain text."""

    produces = "text/plain"


class HtmlRoute(JsonRoute):
    """A route that answers a page."""

    produces = "text/html"


class StreamRoute(JsonRoute):
    """A route that answers a stream of server-sent events."""

    produces = "text/event-stream"


_NESTING = frozenset((dict, list))


def is_deeper(value: Any, depth: int) -> bool:
    """Whether objects and lists of parsed JSON lie in one another deeper than this."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in _NESTING
        ]
        if not level:
            return False
    return True


def _accepts(accept: str, media: str) -> bool:
    """Whether an Accept header allows a media type (RFC 9110, 12.5.1; weights are not compared)."""
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return not ranges.isdisjoint({"", "*/*", f"{media.partition('/')[0]}/*", media})
