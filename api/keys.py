"""API keys: made once and shown once, kept as hashes, scoped, expiring, revocable.

A key reads `esm_{id}_{secret}`. The id is public: it stands in lists and in the audit log. Of the secret,
256 random bits, only the SHA-256 is stored, and no salt or slow hash is needed for it. At most two keys of
one name live at once, so that a caller can move from one to the next without a gap.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from api.access import Caller, Scope
from eventsourcing import ConfigurationError, NotFoundError
from eventsourcing.storage.base import StateStorage, StateTable

API_KEYS = StateTable("api-keys")
"""Key: the id. Value: an `ApiKey`."""

_NAMES = StateTable("api-key-names")
"""Key: a name. Value: {ids} of its keys, the newest last; holding it decides how many may live."""

MAX_LIVE = 2
_KEPT = 20
"""How many keys of one name are listed, dead ones included."""

_FORM = re.compile(r"esm_([0-9a-f]{16})_([A-Za-z0-9_-]{43})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key. Moments are RFC 3339 in UTC; None where it does not expire or is not revoked."""

    id: str
    name: str
    scopes: tuple[str, ...]
    digest: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    @classmethod
    def of(cls, row: dict[str, Any]) -> ApiKey:
        """The key of a stored row."""
        moments = {
            name: datetime.fromisoformat(row[name]) if row[name] else None
            for name in ("created_at", "expires_at", "revoked_at")
        }
        return cls(**{**row, **moments, "scopes": tuple(row["scopes"])})

    def state(self, now: datetime | None = None) -> str:
        """`live`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        expired = self.expires_at is not None and self.expires_at <= (now or datetime.now(UTC))
        return "expired" if expired else "live"

    def opens_with(self, secret: str) -> bool:
        """Whether this is the secret of the key, and the key lives."""
        return hmac.compare_digest(self.digest, _digest(secret)) and self.state() == "live"

    def caller(self) -> Caller:
        """Who calls with this key."""
        return Caller.named(f"key:{self.name}/{self.id}", self.scopes)


NO_KEY = ApiKey("", "", (), "0" * 64, datetime.min.replace(tzinfo=UTC))
"""Asked in the place of a key that there is not: a guess of an id takes as long as one of a secret."""


def parts_of(text: str) -> tuple[str, str] | None:
    """Id and secret of what has the form of a key, else None."""
    match = _FORM.fullmatch(text)
    return (match[1], match[2]) if match else None


async def create_key(
    storage: StateStorage, name: str, scopes: Iterable[Scope], *, lasts: timedelta | None
) -> tuple[ApiKey, str]:
    """Make a key and return it with its text, which nobody can get again.

    Raises ConfigurationError for a malformed name, no scope, or two live keys of that name; then none is
    made.
    """
    granted = tuple(sorted(str(scope) for scope in set(scopes)))
    if not _NAME.fullmatch(name):
        raise ConfigurationError("a key's name is 1 to 64 of letters, digits, '.', '_' and '-'")
    if not granted:
        raise ConfigurationError("a key without a scope opens nothing; name at least one")
    now, secret = datetime.now(UTC), secrets.token_urlsafe(32)
    expires_at = now + lasts if lasts else None
    key = ApiKey(secrets.token_hex(8), name, granted, _digest(secret), now, expires_at)
    async with storage.transaction() as transaction:
        ids = (await transaction.claim(_NAMES, [name], {"ids": []}))[name]["ids"]
        rows = await transaction.get_many(API_KEYS, ids)
        live = [row["id"] for row in rows.values() if ApiKey.of(row).state(now) == "live"]
        if len(live) >= MAX_LIVE:
            raise ConfigurationError(
                f"{name} has {MAX_LIVE} live keys, {' and '.join(sorted(live))}; revoke one of them first"
            )
        forgotten = [id_ for id_ in ids[:-_KEPT] if id_ not in live]
        await transaction.delete_many(API_KEYS, forgotten)
        kept = [id_ for id_ in ids if id_ not in forgotten]
        await transaction.put(_NAMES, name, {"ids": [*kept, key.id]})
        await transaction.put(API_KEYS, key.id, asdict(key))
    return key, f"esm_{key.id}_{secret}"


async def list_keys(storage: StateStorage) -> list[ApiKey]:
    """All keys kept, by name, the newest last; at most 1000."""
    async with storage.transaction() as transaction:
        rows = await transaction.scan(API_KEYS, limit=1000)
    return sorted((ApiKey.of(row) for _, row in rows), key=lambda key: (key.name, key.created_at))


async def find_key(storage: StateStorage, key_id: str) -> ApiKey | None:
    """The key with this id, dead or alive, or None."""
    async with storage.transaction() as transaction:
        row = await transaction.get(API_KEYS, key_id)
    return None if row is None else ApiKey.of(row)


async def revoke_key(storage: StateStorage, key_id: str) -> ApiKey:
    """Let a key open nothing any more; repeating it changes nothing. Raises NotFoundError."""
    async with storage.transaction() as transaction:
        row = await transaction.get(API_KEYS, key_id, lock=True)
        if row is None:
            raise NotFoundError("API key", key_id)
        if row["revoked_at"] is None:
            row = {**row, "revoked_at": datetime.now(UTC).isoformat()}
            await transaction.put(API_KEYS, key_id, row)
    return ApiKey.of(row)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
