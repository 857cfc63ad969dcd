"""Access tokens of an OpenID Connect issuer: JWTs, checked against the keys that the issuer publishes.

The algorithm, the issuer, the audience and the expiry are ours to demand, and a key comes from the
issuer's own list, never from the token. The list is kept for five minutes; a token with a key id that it
lacks has it fetched again, at most every ten seconds, so that the issuer may rotate its keys at any time.
While the issuer is away or slow, the list serves for an hour, and nobody whose key it holds waits for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import httpx2
import jwt

from api.access import Caller
from eventsourcing import UnavailableError

log = logging.getLogger("esm.api.tokens")

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures with a public key: nobody can sign with what the issuer publishes."""

FRESH_S, STALE_S, AGAIN_S, COLD_S = 300.0, 3600.0, 10.0, 1.0
"""How long the list is taken as it is, and how long at all; how soon it is asked for again, with one and
without."""

LEEWAY_S = 10
"""How far the issuer's clock may differ from ours."""

_FETCH_S = 5.0
_MAX_BYTES = 1024 * 1024
_MAX_SUBJECT = 255
_NO_LIST = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading a list of keys comes to that is none."""


class TokenVerifier:
    """Verifies tokens of one issuer for one audience. `jwks_url` None: what the issuer's discovery says."""

    def __init__(self, issuer: str, audience: str, jwks_url: str | None) -> None:
        self._issuer, self._audience, self._jwks_url = issuer, audience, jwks_url
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def caller(self, token: str) -> Caller | None:
        """Who calls with this token; None when it proves nothing to us. Raises UnavailableError without the
        issuer's keys."""
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(header.get("kid"))
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        subject = claims["sub"]  # it names the caller in the audit and before idempotency keys: whole, or not
        if not (isinstance(subject, str) and 0 < len(subject) <= _MAX_SUBJECT and subject.isprintable()):
            return None
        return Caller.named(f"token:{subject}", _scopes(claims))

    async def _key(self, kid: str | None) -> jwt.PyJWK | None:
        await self._refresh(wanted=kid)
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    async def _refresh(self, *, wanted: str | None) -> None:
        if self._is_due(wanted) and (self._fetching is None or self._fetching.done()):
            self._fetching = asyncio.create_task(self._fetch(), name="fetch the issuer's keys")
        if self._is_stale() or (wanted is not None and wanted not in self._keys):
            if self._fetching is not None:
                await asyncio.shield(self._fetching)
            if self._is_stale() and self._fetched_at < self._tried_at:
                raise UnavailableError("the issuer's keys are away")

    async def _fetch(self) -> None:
        self._tried_at = time.monotonic()
        try:
            async with asyncio.timeout(_FETCH_S):
                self._keys = await self._fetched()
            self._fetched_at = time.monotonic()
        except (httpx2.HTTPError, jwt.PyJWTError, OSError, *_NO_LIST) as error:
            log.warning("the issuer's keys are away: %s", type(error).__name__)

    def _is_stale(self) -> bool:
        return time.monotonic() - self._fetched_at > STALE_S

    def _is_due(self, wanted: str | None) -> bool:
        now = time.monotonic()
        if now - self._tried_at < (AGAIN_S if self._keys else COLD_S):
            return False
        return now - self._fetched_at > FRESH_S or (wanted is not None and wanted not in self._keys)

    async def _fetched(self) -> dict[str | None, jwt.PyJWK]:
        async with httpx2.AsyncClient(timeout=_FETCH_S, follow_redirects=False) as client:
            url = self._jwks_url
            if url is None:
                discovery = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
                described = await _json(client, discovery)
                if described["issuer"] != self._issuer:
                    raise ValueError("the discovery document is another issuer's")
                url = str(described["jwks_uri"])
                if not url.startswith("https:") and self._issuer.startswith("https:"):
                    raise ValueError("the issuer's keys would come unprotected")
            listed = await _json(client, url)
        return {key.key_id: key for key in jwt.PyJWKSet.from_dict(listed).keys if _signs(key)}


async def _json(client: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    async with client.stream("GET", url) as response:
        response.raise_for_status()
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _MAX_BYTES:
                raise ValueError("too much for a list of keys")
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - what the issuer said, not what our code did
    return found


def _signs(key: jwt.PyJWK) -> bool:
    """Whether a published key is one to check signatures with."""
    return key.public_key_use in (None, "sig") and key.algorithm_name in ALGORITHMS


def _scopes(claims: dict[str, Any]) -> list[str]:
    """What a token grants: `scope` separated by spaces (RFC 9068), or `scp`, as a list or a text. Anything of
    another form grants nothing."""
    granted = claims.get("scope") or claims.get("scp")
    if isinstance(granted, str):
        return granted.split()
    return [name for name in granted if isinstance(name, str)] if isinstance(granted, list) else []
