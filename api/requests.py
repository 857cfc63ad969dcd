"""What a request must be before a route sees it: JSON, strict, bounded, and wanting what we answer.

FastAPI's own reading accepts NaN and unbounded bodies, and answers some faults outside its error
handlers; these routes read the body themselves, so that every fault becomes a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from api.access import ANYBODY, needed_scope
from api.problems import MALFORMED, NOT_ACCEPTABLE, TOO_LARGE, UNSUPPORTED_MEDIA, ProblemError
from api.schemas import problems

MAX_BODY_BYTES = 1024 * 1024
MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_BATCH_EVENTS = 1000


class JsonRequest(Request):
    """A request whose body is one JSON value within a limit."""

    max_bytes = MAX_BODY_BYTES
    max_items: int | None = None

    async def body(self) -> bytes:
        """Read the body. Raises a 413 problem as soon as it is announced or found to be too large,
        and a 415 problem for anything but plain JSON."""
        if not hasattr(self, "_body"):
            announced = self.headers.get("content-length", "")
            if announced.isdigit() and int(announced) > self.max_bytes:
                raise self._too_large()
            read = bytearray()
            async for chunk in self.stream():
                read += chunk
                if len(read) > self.max_bytes:
                    raise self._too_large()
            self._body = bytes(read)
        if self._body and not self._is_json():
            raise ProblemError(UNSUPPORTED_MEDIA, UNSUPPORTED_MEDIA.meaning)
        return self._body

    async def json(self) -> Any:
        """Parse the body. Raises a 400 problem: NaN, lone surrogates and deep nesting are refused."""
        try:
            value = from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise ProblemError(MALFORMED, f"Not JSON: {error}.") from None
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
            headers={"Connection": "close"},
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
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            request.scope["caller"] = ANYBODY
            if not _accepts(request.headers.get("accept", "*/*"), self.produces):
                raise ProblemError(NOT_ACCEPTABLE, f"This path answers {self.produces}.")
            return await handle(self.request_class(request.scope, request.receive))

        return strictly


class BatchRoute(JsonRoute):
    """A route that takes a batch of events."""

    request_class = BatchRequest


class HtmlRoute(JsonRoute):
    """A route that answers a page."""

    produces = "text/html"


class StreamRoute(JsonRoute):
    """A route that answers a stream of server-sent events."""

    produces = "text/event-stream"


def _accepts(accept: str, media: str) -> bool:
    """Whether an Accept header allows a media type (RFC 9110, 12.5.1; weights are not compared)."""
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return not ranges.isdisjoint({"", "*/*", f"{media.partition('/')[0]}/*", media})
