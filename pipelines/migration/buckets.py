"""Buckets: two sets of rows compared by checksums, in constant memory, however many there are.

Each row is a key and a hash. It falls into one of 1024 buckets by the hash of its key, never by a range
of keys: two databases need not agree on any order. A bucket keeps a count and two sums of what stands for
a row; the buckets that differ are read again, a bounded number of rows at a time, and their rows are named.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import polars as pl

COUNT = 1024
ROWS_IN_MEMORY = 200_000
"""About how many rows of either side are held at once when buckets that differ are read again."""

Rows = Callable[[], Iterable[pl.DataFrame]]
"""One side: frames with the text columns `key` and `hash`, the same ones at every call."""

KINDS = ("changed", "missing", "extra")
"""A key on both sides with another hash; only expected; only found."""


@dataclass
class Compared:
    """What a comparison found: `rows` holds the first differences, as (kind, key)."""

    matched: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    rows: list[tuple[str, str]] = field(default_factory=list)
    unequal: list[int] = field(default_factory=list)
    """The numbers of the buckets that differ."""

    def leave_out(self, kind: str) -> Compared:
        """The same without the differences of a kind."""
        rows = [row for row in self.rows if row[0] != kind]
        return Compared(self.matched, self.counts | {kind: 0}, rows, self.unequal)


def compare(expected: Rows, found: Rows, *, first: int) -> Compared:
    """Compare both sides; the first differences of each kind are named, at most `first`.

    Several rows of one key are compared as a multiset. Each side is read once, and once again for every
    200,000 rows or so in buckets that differ.
    """
    return compare_sums(Sums.of(expected), Sums.of(found), expected, found, first=first)


def compare_sums(
    expected_sums: Sums, found_sums: Sums, expected: Rows, found: Rows, *, first: int
) -> Compared:
    """`compare` for sides that were read before. What is read again may have other hashes, which tell
    differences that mean nothing from those that count."""
    one, other = expected_sums.buckets(), found_sums.buckets()
    unequal = sorted(bucket for bucket in {*one, *other} if one.get(bucket) != other.get(bucket))
    result = Compared(matched=found_sums.total, unequal=unequal)
    size = max(found_sums.total, expected_sums.total, 1)
    at_once = max(1, COUNT * ROWS_IN_MEMORY // size)
    for start in range(0, len(unequal), at_once):
        group = unequal[start : start + at_once]
        _drill(_in_buckets(expected, group), _in_buckets(found, group), result, first)
    return result


def _bucket() -> pl.Expr:
    return pl.col("key").hash(seed=0) % COUNT


_SEEDS = (secrets.randbits(63), secrets.randbits(63))
"""Nobody can make up rows whose sums are those of others: he would have to know these."""


class Sums:
    """Of each bucket that holds a row: the count, and two sums of what stands for a row.

    Sums, for of two equal rows an XOR keeps nothing.
    """

    def __init__(self) -> None:
        self._parts: list[pl.DataFrame] = []
        self.total = 0

    @classmethod
    def of(cls, rows: Rows) -> Sums:
        """The sums of all frames of one side."""
        sums = cls()
        for frame in rows():
            sums.add(frame)
        return sums

    def add(self, frame: pl.DataFrame) -> None:
        """Add rows; `hash` is any text that is equal for equal rows only."""
        # A product binds a hash to its key: of two keys that swap theirs, a sum of both would tell nothing.
        rows = [pl.col("key").hash(seed) * pl.col("hash").hash(seed) // 2**24 for seed in _SEEDS]
        summed = [row.sum().alias(f"sum{place}") for place, row in enumerate(rows)]
        self._parts.append(
            frame.group_by(_bucket().alias("bucket")).agg(pl.len().cast(pl.UInt64).alias("count"), *summed)
        )
        self.total += frame.height
        if len(self._parts) > _PARTS_AT_MOST:
            self._parts = [self._together()]

    def buckets(self) -> dict[int, tuple[int, ...]]:
        """What each bucket came to."""
        return {bucket: tuple(sums) for bucket, *sums in self._together().iter_rows()} if self._parts else {}

    def _together(self) -> pl.DataFrame:
        return pl.concat(self._parts).group_by("bucket").agg(pl.all().sum())


_PARTS_AT_MOST = 64


def _in_buckets(side: Rows, group: list[int]) -> pl.DataFrame:
    """The rows of some buckets, one for each key, the hashes of a key joined in order."""
    wanted = pl.Series("bucket", group, dtype=pl.UInt64)
    kept = [frame.select("key", "hash").filter(_bucket().is_in(wanted.implode())) for frame in side()]
    rows = pl.concat([pl.DataFrame(schema={"key": pl.String, "hash": pl.String}), *kept])
    return rows.group_by("key").agg(pl.col("hash").sort().str.join(","), pl.len().alias("rows"))


def _drill(expected: pl.DataFrame, found: pl.DataFrame, result: Compared, first: int) -> None:
    joined = expected.join(found, on="key", how="full", coalesce=True, suffix="_found")
    of_kind = {
        "changed": pl.col("hash") != pl.col("hash_found"),
        "missing": pl.col("hash_found").is_null(),
        "extra": pl.col("hash").is_null(),
    }
    for kind, mask in of_kind.items():
        rows = joined.filter(mask.fill_null(value=False)).sort(pl.col("key").str.len_chars(), "key")
        result.counts[kind] += rows.height
        result.matched -= int(rows["rows_found"].sum())
        room = max(first - sum(1 for known, _ in result.rows if known == kind), 0)
        result.rows += [(kind, key) for key in rows["key"].head(room)]
