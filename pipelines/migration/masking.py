"""Masking: a keyed hash in place of every secret value, so that equal secrets are seen to be equal
within a run, and nothing is seen of them."""

from __future__ import annotations

import hmac
from typing import Any

from eventsourcing.canonical import comparable


class Masker:
    """Masks under a key of the run's own, made of the configured secret and the migration_id."""

    def __init__(self, secret: str, migration_id: str) -> None:
        self._key = hmac.digest(secret.encode(), migration_id.encode(), "sha256")

    def mask(self, value: Any) -> str | None:
        """`hmac-sha256:` and the hash in hexadecimal; None stays None."""
        if value is None:
            return None
        text = value.encode() if isinstance(value, str) else comparable(value)
        return "hmac-sha256:" + hmac.digest(self._key, text, "sha256").hex()
