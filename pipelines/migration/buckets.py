"""Buckets: two sets of rows compared by checksums, in constant memory, however many there are.

Each row is a key and a hash. It falls into one of 1024 buckets by the hash of its key, never by a range
of keys: two databases need not agree on any order. A bucket keeps a count and two XORs; the buckets that
differ are read again, a bounded number of rows at a time, and their rows are named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl

COUNT = 1024
ROWS_IN_MEMORY = 200_000
"""About how many rows of either side are held at once when buckets that differ are read again."""

Rows = Callable[[], Iterable[pl.DataFrame]]
"""One side: frames with the text columns `key` and `hash`, the same ones at every call."""

Parts = Callable[[], Iterable[tuple[str, pl.DataFrame]]]
"""One side of several parts, read together: the part that each frame belongs to."""

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


def compare(expected: Rows, found: Rows, *, first: int) -> Compared:
    """Compare both sides; the first differences of each kind are named, at most `first`.

    Several rows of one key are compared as a multiset. Each side is read once, and once again for every
    200,000 rows or so in buckets that differ.
    """
    sums = _Sums()
    for frame in expected():
        sums.add(frame)
    return _compared(sums, expected, found, first)


def compare_parts(expected: Parts, found: Mapping[str, Rows], *, first: int) -> dict[str, Compared]:
    """`compare` for several parts whose expected rows come out of one reading, frame by frame."""
    sums = {name: _Sums() for name in found}
    for name, frame in expected():
        sums[name].add(frame)

    def of(part: str) -> Rows:
        return lambda: (frame for name, frame in expected() if name == part)

    return {name: _compared(sums[name], of(name), rows, first) for name, rows in found.items()}


def _compared(sums: _Sums, expected: Rows, found: Rows, first: int) -> Compared:
    rows = _Sums()
    for frame in found():
        rows.add(frame)
    unequal = sorted(bucket for bucket in {*sums.of, *rows.of} if sums.of.get(bucket) != rows.of.get(bucket))
    result = Compared(matched=rows.total, unequal=unequal)
    size = max(rows.total, sums.total, 1)
    at_once = max(1, COUNT * ROWS_IN_MEMORY // size)
    for start in range(0, len(unequal), at_once):
        group = unequal[start : start + at_once]
        _drill(_in_buckets(expected, group), _in_buckets(found, group), result, first)
    return result


def _bucket() -> pl.Expr:
    return pl.col("key").hash(seed=0) % COUNT


class _Sums:
    """Of each bucket that holds a row: the count, and two XORs of what stands for a row."""

    def __init__(self) -> None:
        self.of: dict[int, list[int]] = {}
        self.total = 0

    def add(self, frame: pl.DataFrame) -> None:
        digits = pl.col("hash").str.slice(0, 15).str.to_integer(base=16, strict=True)
        both = pl.concat_str("key", "hash", separator="\x1f").hash(seed=0)
        grouped = frame.group_by(_bucket().alias("bucket")).agg(
            pl.len(), digits.bitwise_xor().alias("digits"), both.bitwise_xor().alias("both")
        )
        for bucket, count, one, two in grouped.iter_rows():
            entry = self.of.setdefault(bucket, [0, 0, 0])
            entry[0], entry[1], entry[2] = entry[0] + count, entry[1] ^ one, entry[2] ^ two
        self.total += frame.height


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
