"""Masking: a keyed hash in place of every secret value, so that equal secrets are seen to be equal
within a run, and nothing is seen of them."""

from __future__ import annotations

import hmac
from typing import Any

import polars as pl
import polars_hash as plh

from eventsourcing.canonical import comparable


class Masker:
    """Masks under a key of the run's own, made of the configured secret and the migration_id."""

    def __init__(self, secret: str, migration_id: str) -> None:
        self._key = hmac.digest(secret.encode(), migration_id.encode(), "sha256").hex()

    def mask(self, value: Any) -> str | None:
        """`hmac-sha256:` and the hash in hexadecimal; None stays None."""
        if value is None:
            return None
        text = value.encode() if isinstance(value, str) else comparable(value)
        return "hmac-sha256:" + hmac.digest(self._key.encode(), text, "sha256").hex()

    def mask_all(self, values: pl.Series) -> pl.Series:
        """`mask` of each value, for all of a column."""
        if values.dtype != pl.String():
            return pl.Series(values.name, [self.mask(value) for value in values], dtype=pl.String)
        digest = plh.col("value").chash.hmac_sha256(key=self._key)
        masked = values.alias("value").to_frame().select("hmac-sha256:" + digest)
        return masked.to_series().alias(values.name)
