"""The gate of a service: who calls, may they, and how often. It is asked before anything else is read.

While authentication is off, everybody passes as `anybody`, and only the rate is held. A key found live is
trusted for five seconds, so a revoked one is refused everywhere within that time, and a stream that was
opened with it ends within ten (see `REVOKED_WITHIN_S`). Strangers are counted by address, but never in the
way of a caller who is known: behind a proxy they may have the same one. Their guesses are looked up two at a
time, so that they never take the connections of the rest.
"""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial
from typing import TYPE_CHECKING

from fastapi import Request

from api.access import ANYBODY, CALLER, Caller, Scope
from api.keys import NO_KEY, ApiKey, find_key, parts_of
from api.limits import SEAT, RateLimit, Seats
from api.problems import FORBIDDEN, RATE_LIMITED, UNAUTHENTICATED, ProblemError
from eventsourcing import EventSourcingError, Settings
from eventsourcing.storage.base import StateStorage

if TYPE_CHECKING:
    from api.tokens import TokenVerifier

KEY_TRUSTED_S = 5.0
"""How long a key is trusted without another look."""

REVOKED_WITHIN_S = 10.0
"""The promise: so long after its revocation a key opens nothing, and nothing it opened is open."""

_MAX_KNOWN = 10_000
_GUESSES_AT_ONCE = 2


class Gate:
    """Admits callers to the routes of one service."""

    def __init__(self, settings: Settings, storage: StateStorage) -> None:
        self._is_open = settings.authentication == "off"
        self._storage = storage
        self._rate = RateLimit(settings.rate_limit, max(settings.rate_limit * 2, 1))
        self._seats = Seats(settings.concurrent_requests)
        self._guesses = asyncio.Semaphore(_GUESSES_AT_ONCE)
        self._known: dict[str, tuple[float, asyncio.Task[ApiKey | None]]] = {}
        self._tokens = _verifier(settings)

    async def admit(self, request: Request, scope: Scope) -> Caller:
        """Who calls, once they may use a route that needs this scope.

        Raises a problem: 401 who does not say who they are, 429 who calls too often or has too many
        requests under way, 403 who lacks the scope, 503 when it cannot be looked up.
        """
        caller = ANYBODY if self._is_open else await self._identified(request)
        request.scope[CALLER] = caller
        name = _address(request) if caller is ANYBODY else caller.name
        if wait_s := self._rate.wait_s(name):
            raise _too_often(wait_s)
        if not self._seats.take(name):
            raise _too_often(1)
        request.scope[SEAT] = partial(self._seats.give_back, name)
        if scope not in caller.scopes:
            raise ProblemError(
                FORBIDDEN, f"This needs the scope {scope}.", members={"needed_scope": str(scope)}
            )
        return caller

    async def still_admits(self, request: Request, scope: Scope) -> bool:
        """Whether the caller of a request could make it now, which may have begun long ago; False also while
        the storage is away, for then nobody can be known not to be revoked."""
        try:
            return self._is_open or scope in (await self._identified(request)).scopes
        except (ProblemError, EventSourcingError):
            return False

    async def _identified(self, request: Request) -> Caller:
        given = [value for name, value in request.scope["headers"] if name == b"authorization"]
        kind, _, text = given[0].decode("latin-1").partition(" ") if len(given) == 1 else ("", "", "")
        caller = await self._known_by(text.strip(" ")) if kind.lower() == "bearer" else None
        if caller is None:
            if wait_s := self._rate.wait_s(_address(request)):
                raise _too_often(wait_s)
            raise ProblemError(
                UNAUTHENTICATED, UNAUTHENTICATED.meaning, headers={"WWW-Authenticate": 'Bearer realm="esm"'}
            )
        return caller

    async def _known_by(self, text: str) -> Caller | None:
        if parts := parts_of(text):
            key = await self._key(parts[0]) or NO_KEY
            return key.caller() if key.opens_with(parts[1]) else None
        if self._tokens is None or len(text) > 8192:
            return None
        return await self._tokens.caller(text)

    async def _key(self, key_id: str) -> ApiKey | None:
        """A key, looked up once for all who ask within the time it is trusted."""
        until, looking = self._known.get(key_id, (0.0, None))
        if looking is None or time.monotonic() > until:
            if len(self._known) >= _MAX_KNOWN:
                self._make_room()
            look = self._look_up(key_id, is_guess=not _is_live(looking))
            looking = asyncio.create_task(look, name="look an API key up")
            self._known[key_id] = (time.monotonic() + KEY_TRUSTED_S, looking)
        try:
            return await asyncio.shield(looking)
        except Exception:
            self._known.pop(key_id, None)  # not known is not unknown: the next caller looks again
            raise

    async def _look_up(self, key_id: str, *, is_guess: bool) -> ApiKey | None:
        if not is_guess:
            return await find_key(self._storage, key_id)
        async with self._guesses:
            return await find_key(self._storage, key_id)

    def _make_room(self) -> None:
        """Forget what strangers guessed; where that is nothing, everything."""
        self._known = {key_id: held for key_id, held in self._known.items() if _is_live(held[1])}
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()


def _is_live(looking: asyncio.Task[ApiKey | None] | None) -> bool:
    """Whether this look-up found a key that lives."""
    if looking is None or not looking.done() or looking.cancelled() or looking.exception() is not None:
        return False
    key = looking.result()
    return key is not None and key.state() == "live"


def _verifier(settings: Settings) -> TokenVerifier | None:
    """What checks access tokens, where an issuer is configured; its libraries are loaded only there."""
    if not (settings.oidc_issuer and settings.oidc_audience):
        return None
    from api.tokens import TokenVerifier

    return TokenVerifier(settings.oidc_issuer, settings.oidc_audience, settings.oidc_jwks_url)


def _address(request: Request) -> str:
    return request.client.host if request.client else "nowhere"


def _too_often(wait_s: float) -> ProblemError:
    return ProblemError(
        RATE_LIMITED, RATE_LIMITED.meaning, headers={"Retry-After": str(max(1, math.ceil(wait_s)))}
    )
