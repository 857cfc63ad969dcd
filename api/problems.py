"""Every error as `application/problem+json` (RFC 9457): one table from library errors to statuses.

A `type` is a stable path that answers what it means. What the caller sent is never echoed: a problem
names fields and versions, not their values.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from eventsourcing import (
    BusyError,
    ConcurrencyError,
    ConfigurationError,
    CursorAheadError,
    DuplicateEventError,
    EventSourcingError,
    InvalidEventError,
    NotFoundError,
    SchemaError,
    StateForbidsError,
    UnavailableError,
    UpcastError,
)
from eventsourcing.logs import current, spoken

log = logging.getLogger("esm.api")

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem: `/problems/{slug}` is its type, `meaning` says what to do about it."""

    slug: str
    status: int
    title: str
    meaning: str


MALFORMED = Kind(
    "malformed-json", 400, "The body is not JSON", "Send one JSON value (RFC 8259) in UTF-8, without NaN."
)
BAD_REQUEST = Kind("bad-request", 400, "The request cannot be read", "Correct the request.")
UNAUTHENTICATED = Kind(
    "unauthenticated",
    401,
    "Nobody we know",
    "Send a live API key or a valid access token, as in Authorization: Bearer esm_….",
)
FORBIDDEN = Kind(
    "forbidden", 403, "The scope is missing", "Use a key or a token that has the scope named in needed_scope."
)
FOREIGN_HOST = Kind(
    "foreign-host",
    403,
    "The service has another name",
    "Call it by an address, as localhost, or by a name that ESM_ALLOWED_HOSTS lists.",
)
FOREIGN_PAGE = Kind(
    "foreign-page",
    403,
    "Not for the pages of others",
    "While authentication is off, a browser may call from our own pages alone. Call from a program.",
)
NOT_FOUND = Kind("not-found", 404, "Nothing is here", "Check the path and the id in it.")
METHOD_NOT_ALLOWED = Kind(
    "method-not-allowed", 405, "The method is not allowed here", "Use a method that Allow lists."
)
NOT_ACCEPTABLE = Kind("not-acceptable", 406, "No form that Accept allows", "Accept application/json, or */*.")
CONFLICT = Kind("conflict", 409, "The state forbids it", "Read the state again, then decide again.")
CONCURRENCY = Kind(
    "concurrency-conflict",
    409,
    "Another writer was first",
    "Read the aggregate again, decide again, and append with its current version.",
)
DUPLICATE = Kind(
    "event-id-reused",
    409,
    "The event_id belongs to another event",
    "An event_id names one event for ever. Give a new event a new id.",
)
CURSOR_AHEAD = Kind(
    "cursor-ahead",
    409,
    "The cursor is ahead of the store",
    "The store was restored to an earlier state. Start again from a position that it has.",
)
IN_FLIGHT = Kind(
    "request-in-flight",
    409,
    "The same request is being worked on",
    "Send it again under the same Idempotency-Key after Retry-After; the answer is kept for a day.",
)
PRECONDITION_FAILED = Kind(
    "precondition-failed",
    412,
    "If-Match does not hold",
    "Read the aggregate again, decide again, and send the ETag of its last event.",
)
TOO_LARGE = Kind("too-large", 413, "The body is too large", "1 MiB an event; 8 MiB and 1000 events a batch.")
UNSUPPORTED_MEDIA = Kind(
    "unsupported-media-type", 415, "The body must be JSON", "Send Content-Type: application/json."
)
KEY_REUSED = Kind(
    "idempotency-key-reused",
    422,
    "The Idempotency-Key belongs to another request",
    "A key names one request for 24 hours. Give a new request a new key.",
)
INVALID = Kind("invalid", 422, "A value is not valid", "`errors` names each field and what it must be.")
RATE_LIMITED = Kind("rate-limited", 429, "Too many requests", "Wait for Retry-After, then go on slower.")
TOO_SLOW = Kind("too-slow", 408, "The body came too slowly", "Send a body within 30 seconds.")
INTERNAL = Kind("internal", 500, "The service failed", "The log holds the cause under the id in `instance`.")
UNREADABLE = Kind(
    "unreadable-event",
    500,
    "A stored event cannot be read",
    "This code does not know its payload's version, or fails to bring it to the newest. Mend the code.",
)
UNAVAILABLE = Kind(
    "unavailable",
    503,
    "Temporarily unavailable",
    "Try again after Retry-After; repeat an append with the same event ids, and nothing is stored twice.",
)
POSITION_NOT_REACHED = Kind(
    "position-not-reached",
    503,
    "The position is not reached yet",
    "Readers have not come to min_position within 5 seconds. Try again.",
)

KINDS = {
    kind.slug: kind
    for kind in (
        MALFORMED,
        BAD_REQUEST,
        UNAUTHENTICATED,
        FORBIDDEN,
        FOREIGN_HOST,
        FOREIGN_PAGE,
        NOT_FOUND,
        METHOD_NOT_ALLOWED,
        NOT_ACCEPTABLE,
        TOO_SLOW,
        CONFLICT,
        CONCURRENCY,
        DUPLICATE,
        CURSOR_AHEAD,
        IN_FLIGHT,
        PRECONDITION_FAILED,
        TOO_LARGE,
        UNSUPPORTED_MEDIA,
        KEY_REUSED,
        INVALID,
        RATE_LIMITED,
        INTERNAL,
        UNREADABLE,
        UNAVAILABLE,
        POSITION_NOT_REACHED,
    )
}
"""Every kind by its slug."""

_BY_STATUS = {
    kind.status: kind
    for kind in (
        BAD_REQUEST,
        NOT_FOUND,
        METHOD_NOT_ALLOWED,
        NOT_ACCEPTABLE,
        CONFLICT,
        TOO_LARGE,
        UNSUPPORTED_MEDIA,
        INVALID,
        UNAVAILABLE,
    )
}

_KIND_OF: dict[type[EventSourcingError], Kind] = {
    InvalidEventError: INVALID,
    ConcurrencyError: CONCURRENCY,
    DuplicateEventError: DUPLICATE,
    NotFoundError: NOT_FOUND,
    CursorAheadError: CURSOR_AHEAD,
    UpcastError: UNREADABLE,
    StateForbidsError: CONFLICT,
    BusyError: CONFLICT,
    UnavailableError: UNAVAILABLE,
    SchemaError: UNAVAILABLE,
    ConfigurationError: UNAVAILABLE,
}
"""The one table from the library's errors to problems; any other error is INTERNAL."""


class ProblemError(HTTPException):
    """A problem raised where it is found. `members` stand beside the ones of RFC 9457."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        if kind.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers = {"Retry-After": "2", **(headers or {})}
        super().__init__(kind.status, detail, dict(headers or {}))
        self.kind, self.members = kind, dict(members or {})


def invalid_field(field: str, detail: str, *, index: int | None = None, where: str = "body") -> ProblemError:
    """The problem of one field: a dotted path in the body, or the name of a parameter."""
    return _invalid([_field_error(field.split(".") if field else [], detail, where, index)])


def invalid_place(field: str, detail: str, entries: Sequence[Mapping[str, Any]]) -> ProblemError:
    """The problem of one field that is wrong in several ways: an entry of `errors` for each, with members
    of its own beside `detail`."""
    errors = [{**_field_error([field], "", "body"), **entry} for entry in entries]
    return ProblemError(INVALID, f"{field}: {detail}", members={"errors": errors})


def problem_of(error: EventSourcingError, *, index: int | None = None) -> ProblemError:
    """The problem that a library error is to the caller; `index` is the place in a batch."""
    place = {} if index is None else {"index": index}
    match error:
        case InvalidEventError():
            return invalid_field(error.field, error.reason, index=error.index if index is None else index)
        case ConcurrencyError():
            detail = f"The aggregate is at version {error.actual}, not at the expected {error.expected}."
            versions = {"current_version": error.actual, "expected_version": error.expected}
            return ProblemError(CONCURRENCY, detail, members={**versions, **place})
        case DuplicateEventError():
            detail = f"The event_id is stored already, with another {error.field}."
            return ProblemError(DUPLICATE, detail, members={"field": error.field, **place})
        case UpcastError():
            detail = f"Event {error.event_id} cannot be read by this version of the code."
            named = {"event_id": str(error.event_id), "event_type": error.event_type}
            return ProblemError(UNREADABLE, detail, members=named)
        case StateForbidsError():
            return ProblemError(CONFLICT, f"The {error.kind} is {error.status}.")
        case CursorAheadError():
            return ProblemError(
                CURSOR_AHEAD, f"The last position is {error.head}.", members={"head": error.head}
            )
    kind = next((kind for cls, kind in _KIND_OF.items() if isinstance(error, cls)), INTERNAL)
    return ProblemError(kind, kind.meaning)


def status_of(error: Exception) -> int:
    """The status that an error of a route is answered with."""
    if isinstance(error, EventSourcingError):
        error = problem_of(error)
    if isinstance(error, RequestValidationError):
        return INVALID.status
    return error.status_code if isinstance(error, StarletteHTTPException) else INTERNAL.status


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem, and say what each type means."""
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(EventSourcingError, _library_error)
    app.add_exception_handler(Exception, _unexpected)
    app.add_api_route("/problems/{slug}", _explain, include_in_schema=False)


async def _explain(slug: str) -> dict[str, Any]:
    if slug not in KINDS:
        raise ProblemError(NOT_FOUND, "No such kind of problem.")
    kind = KINDS[slug]
    return {
        "type": f"/problems/{slug}",
        "status": kind.status,
        "title": kind.title,
        "meaning": kind.meaning,
    }


def problem_response(problem: ProblemError) -> Response:
    """The answer that tells a problem."""
    return _response(problem.kind, problem.detail, problem.headers, problem.members)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    if isinstance(error, ProblemError):
        return problem_response(error)
    kind = _BY_STATUS.get(error.status_code)
    if kind is None:
        phrase = HTTPStatus(error.status_code).phrase
        kind = Kind("", error.status_code, phrase, phrase)
    return _response(kind, kind.meaning, error.headers, {})


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _http_error(
        request, _invalid([_field_error(*_located(found)) for found in error.errors()[:20]])
    )


async def _library_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EventSourcingError)
    problem = problem_of(error)
    if problem.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s: %s", type(error).__name__, spoken(error))
    return await _http_error(request, problem)


async def _unexpected(_request: Request, error: Exception) -> Response:
    log.error("a request failed with %s", type(error).__name__)
    return _response(INTERNAL, INTERNAL.meaning, None, {})


def _response(
    kind: Kind, detail: str, headers: Mapping[str, str] | None, members: Mapping[str, Any]
) -> Response:
    members = {"instance": f"urn:request:{current('request_id')}", **members}
    body = _body(kind, detail, members)
    return Response(orjson.dumps(body), kind.status, dict(headers or {}), media_type=MEDIA_TYPE)


def problem_body(problem: ProblemError) -> dict[str, Any]:
    """A problem that is told inside an answer."""
    return _body(problem.kind, str(problem.detail), problem.members)


def validation_problem(error: ValidationError) -> ProblemError:
    """The problem of a body that does not fit."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:20]
    return _invalid([_field_error(*_located({**each, "loc": ("body", *each["loc"])})) for each in found])


def _body(kind: Kind, detail: str, members: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": f"/problems/{kind.slug}" if kind.slug else "about:blank",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        **members,
    }


def _invalid(errors: list[dict[str, Any]]) -> ProblemError:
    first = errors[0]
    place = {"index": first["index"]} if "index" in first else {}
    name = f"{first['field']}: " if first["field"] else ""
    where = f"event {first['index']}: " if place else ""
    return ProblemError(INVALID, f"{where}{name}{first['detail']}", members={"errors": errors, **place})


_PLAIN_NAME = re.compile(r"[A-Za-z0-9_\-\[\]]{1,64}")

_OWN_WORDS = {
    "uuid_parsing": "must be a UUID",
    "datetime_parsing": "must be a date and time (RFC 3339)",
    "datetime_from_date_parsing": "must be a date and time (RFC 3339)",
    "json_invalid": "must be JSON",
}
"""pydantic's error type -> what we say, where its own message quotes the input."""


def _field_error(
    path: Sequence[str | int], detail: str, where: str, index: int | None = None
) -> dict[str, Any]:
    """One entry of `errors`. A name that is no plain name is the caller's text: its parent is named."""
    names: list[str] = []
    for name in map(str, path):
        if not _PLAIN_NAME.fullmatch(name):
            break
        names.append(name)
    entry: dict[str, Any] = {"field": ".".join(names), "in": where, "detail": detail}
    if where == "body":
        steps = names if index is None else [str(index), *names]
        entry["pointer"] = "#" + "".join(f"/{step}" for step in steps)
    if index is not None:
        entry["index"] = index
    return entry


def _located(found: Mapping[str, Any]) -> tuple[list[str | int], str, str, int | None]:
    """Path, message, where and batch index of one of pydantic's errors."""
    where, *path = found["loc"]
    index = path.pop(0) if where == "body" and path and isinstance(path[0], int) else None
    message = _OWN_WORDS.get(found["type"], str(found["msg"]).removeprefix("Value error, "))
    return path, message, str(where), index if isinstance(index, int) else None
