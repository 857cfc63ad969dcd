"""Access tokens of an OpenID Connect issuer: JWTs, checked against the keys that the issuer publishes.

The algorithm, the issuer, the audience and the expiry are ours to demand, and a key comes from the
issuer's own list, never from the token. The list is kept for five minutes; a token with a key id that it
lacks has it fetched again, at most every ten seconds, so that the issuer may rotate its keys at any time.
While the issuer is away, the list serves for an hour.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx2
import jwt

from api.access import Caller
from eventsourcing import UnavailableError

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures with a public key: nobody can sign with what the issuer publishes."""

FRESH_S, STALE_S, AGAIN_S = 300.0, 3600.0, 10.0
LEEWAY_S = 10
"""How far the issuer's clock may differ from ours."""

_TIMEOUT_S = 5.0
_MAX_BYTES = 1024 * 1024


class TokenVerifier:
    """Verifies tokens of one issuer for one audience. `jwks_url` None: what the issuer's discovery says."""

    def __init__(self, issuer: str, audience: str, jwks_url: str | None) -> None:
        self._issuer, self._audience, self._jwks_url = issuer, audience, jwks_url
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching = asyncio.Lock()

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
        except (jwt.PyJWTError, ValueError):
            return None
        return Caller.named(f"token:{str(claims['sub'])[:128]}", _scopes(claims))

    async def _key(self, kid: str | None) -> jwt.PyJWK | None:
        await self._refresh(wanted=kid)
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    async def _refresh(self, *, wanted: str | None) -> None:
        if not self._is_due(wanted):
            return
        async with self._fetching:
            if not self._is_due(wanted):
                return
            self._tried_at = time.monotonic()
            try:
                self._keys = await self._fetched()
                self._fetched_at = time.monotonic()
            except (httpx2.HTTPError, jwt.PyJWTError, ValueError, KeyError, TypeError) as error:
                if time.monotonic() - self._fetched_at > STALE_S:
                    raise UnavailableError(f"the issuer's keys are away: {type(error).__name__}") from error

    def _is_due(self, wanted: str | None) -> bool:
        now = time.monotonic()
        if self._keys and now - self._tried_at < AGAIN_S:
            return False
        return now - self._fetched_at > FRESH_S or (wanted is not None and wanted not in self._keys)

    async def _fetched(self) -> dict[str | None, jwt.PyJWK]:
        async with httpx2.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=False) as client:
            url = self._jwks_url
            if url is None:
                discovery = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
                described = await _json(client, discovery)
                if described["issuer"] != self._issuer:
                    raise ValueError("the discovery document is another issuer's")
                url = str(described["jwks_uri"])
            listed = await _json(client, url)
        return {key.key_id: key for key in jwt.PyJWKSet.from_dict(listed).keys}


async def _json(client: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    async with client.stream("GET", url) as response:
        response.raise_for_status()
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _MAX_BYTES:
                raise ValueError("too much for a list of keys")
    found: dict[str, Any] = httpx2.Response(200, content=bytes(body)).json()
    return found


def _scopes(claims: dict[str, Any]) -> list[str]:
    """What a token grants: `scope` separated by spaces (RFC 9068), or `scp`, as a list or a text."""
    granted = claims.get("scope", claims.get("scp", ""))
    return [str(name) for name in (granted.split() if isinstance(granted, str) else granted or ())]
