"""Uniqueness: which records share a value, found by eight bytes a record for each constraint.

The records are not held. Those whose hash another record has are read again and compared by value, so
two values of one hash accuse nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl

from pipelines.migration.keys import listed
from pipelines.migration.schema import Unique


@dataclass
class Distinct:
    """What must be distinct: staged columns, together, where none of them is null."""

    column: str
    """How a violation names it."""
    values: Sequence[pl.Expr]
    hashes: list[pl.Series] = field(default_factory=list)

    @classmethod
    def under(cls, unique: Unique) -> Distinct:
        """What a constraint of the target compares, as its collation does."""
        values = {name: pl.col(f"t:{name}") for name in unique.columns}
        values |= {name: values[name].str.to_lowercase() for name in unique.folded}
        return cls(listed(unique.columns), [*values.values()])

    def value(self) -> pl.Expr:
        """The value of each record; only of those that are `complete` does it count."""
        return self.values[0] if len(self.values) == 1 else pl.struct(self.values)

    def complete(self) -> pl.Expr:
        """Whether a record has a value to compare."""
        return pl.all_horizontal(value.is_not_null() for value in self.values)

    def add(self, accepted: pl.DataFrame) -> None:
        """Note a chunk's records by their hashes."""
        found = accepted.filter(self.complete()).select(self.value().hash(seed=0).alias("hash"))
        self.hashes.append(found.to_series())

    def suspects(self) -> pl.Series:
        """The hashes that more than one record has; what was noted is forgotten."""
        noted = pl.concat(self.hashes).sort() if self.hashes else pl.Series(dtype=pl.UInt64)
        self.hashes.clear()
        return noted.filter(noted == noted.shift(1)).unique()


def shared(distinct: Sequence[Distinct], chunks: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """For each of them the records that share its value: `_key` and `_place`, the place of their chunk.

    `chunks` are the accepted records once more; they are not read when no two hashes were the same.
    """
    suspects = [one.suspects() for one in distinct]
    picked = [[_NONE.with_columns(value=None)] for _ in distinct]
    for place, frame in enumerate(chunks if any(len(hashes) for hashes in suspects) else ()):
        for one, hashes, kept in zip(distinct, suspects, picked, strict=True):
            suspected = frame.filter(one.complete() & one.value().hash(seed=0).is_in(hashes.implode()))
            kept.append(suspected.select("_key", pl.lit(place).alias("_place"), one.value().alias("value")))
    for kept in picked:
        rows = pl.concat(kept, how="vertical_relaxed")
        yield rows.filter(pl.col("value").is_duplicated()).drop("value")


_NONE = pl.DataFrame(schema={"_key": pl.String, "_place": pl.Int32})
