"""Who may do what: the scopes, and how a route declares the one that it needs.

A route states it once, in its declaration; the check, the OpenAPI document and the answers 401, 403 and
429 follow from that. A route that states nothing cannot be made:

    @router.get("/events", openapi_extra=needs(Scope.READ))
    @router.get("/livez", openapi_extra=OPEN)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Depends, Request


class Scope(StrEnum):
    """What a caller may be allowed. None includes another."""

    APPEND = "events:append"
    READ = "events:read"
    READ_PERSONAL = "events:read_personal"
    REPLAY = "replays:run"
    MIGRATE = "migrations:run"
    METRICS = "metrics:read"
    ADMIN = "admin"


MEANINGS: Mapping[Scope, str] = {
    Scope.APPEND: "Publish events.",
    Scope.READ: "Read events and what is derived from them; personal data is masked.",
    Scope.READ_PERSONAL: "See personal data in whatever else may be read.",
    Scope.REPLAY: "Start and stop replays, take snapshots, check sequences.",
    Scope.MIGRATE: "Start, resume, cancel, verify and undo migrations; retry a quarantine.",
    Scope.METRICS: "Read what the processes measured, as Prometheus does.",
    Scope.ADMIN: "Operate: dead letters, consumers, read models, the audit log.",
}

ALL_SCOPES = frozenset(Scope)

SECURITY_SCHEMES: Mapping[str, Mapping[str, str]] = {
    "api_key": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key (`esm keys create`), as in `Authorization: Bearer esm_…`.",
    },
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "An access token of the configured OpenID Connect issuer, with its scopes.",
    },
}
"""The two ways to say who calls; either will do."""

OPEN: dict[str, Any] = {"security": []}
"""`openapi_extra` of a route that answers everybody."""


def needs(scope: Scope) -> dict[str, Any]:
    """`openapi_extra` of a route that only callers with this scope may use."""
    return {"security": [{name: [str(scope)]} for name in SECURITY_SCHEMES]}


def needed_scope(openapi_extra: Mapping[str, Any] | None, path: str) -> Scope | None:
    """The scope that a route declares; None for an open one. Raises TypeError when it declares nothing."""
    match (openapi_extra or {}).get("security"):
        case []:
            return None
        case [{"api_key": [scope]}, *_]:
            return Scope(scope)
        case _:
            raise TypeError(f"{path} declares no scope: give it openapi_extra=needs(Scope.…), or OPEN")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: `name` stands in the audit log, `scopes` are what the caller may do."""

    name: str
    scopes: frozenset[Scope]

    @classmethod
    def named(cls, name: str, scopes: Iterable[str]) -> Caller:
        """A caller with those of these scopes that are ours."""
        return cls(name, frozenset(Scope(scope) for scope in scopes if scope in ALL_SCOPES))

    @property
    def sees_personal_data(self) -> bool:
        """Whether answers to this caller hold personal data as it is."""
        return Scope.READ_PERSONAL in self.scopes


ANYBODY = Caller("anybody", ALL_SCOPES)
"""Every caller, while authentication is off."""

NOBODY = Caller("nobody", frozenset())
"""Who has not said who they are."""

CALLER = "esm.caller"
"""Where a request's scope holds its `Caller`, once admitted."""


def caller_of(request: Request) -> Caller:
    """Whom the service admitted with this request."""
    caller: Caller = request.scope.get(CALLER, NOBODY)
    return caller


async def _caller(request: Request) -> Caller:
    return caller_of(request)


CurrentCaller = Annotated[Caller, Depends(_caller)]
"""The caller, for a route whose answer depends on who asks."""
