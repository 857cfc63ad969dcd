"""CSV files as a source: a file is a table named by its stem, a folder holds one for each file.

Every column is text; transforms make of it what it means. An empty field is null. Records come in the
order of the file, whose first line names the columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from pipelines.migration.errors import SourceError
from pipelines.migration.schema import Column, Table


class CsvSource:
    """A CSV file or a folder of them. Raises SourceError when it is not there."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise SourceError(f"the source file {path.name!r} does not exist", stage="start")
        self._path = path
        files = [path] if path.is_file() else sorted(path.glob("*.csv"))
        self._files = {file.stem: file for file in files}

    def describe(self) -> dict[str, str]:
        return {"kind": "csv", "database": self._path.name}

    def tables(self, names: set[str]) -> dict[str, Table]:
        return {name: self._table(name) for name in sorted(names & {*self._files})}

    @contextmanager
    def snapshot(self) -> Iterator[CsvSnapshot]:
        """The files as they are: raises SourceError at the end when one was changed meanwhile."""
        before = self._state()
        yield CsvSnapshot(self._files)
        if self._state() != before:
            raise SourceError("a source file was changed while it was read", stage="extract", resumable=True)

    def _state(self) -> list[tuple[int, int, int]]:
        found = [file.stat() for file in self._files.values()]
        return [(item.st_ino, item.st_size, item.st_mtime_ns) for item in found]

    def _table(self, name: str) -> Table:
        with _reading(name):
            columns = _scan(self._files[name]).collect_schema().names()
        return Table(name, {column: Column(column, "text", "text") for column in columns})


class CsvSnapshot:
    """Reads of files that must not change meanwhile."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    def count(self, table: str) -> int:
        with _reading(table):
            return int(_scan(self._files[table]).select(pl.len()).collect().item())

    def chunks(
        self,
        table: Table,
        *,
        key: tuple[str, ...],  # noqa: ARG002 - records come in the order of the file
        columns: tuple[str, ...],
        rows: int,
    ) -> Iterator[pl.DataFrame]:
        nothing = pl.lit(None, pl.String).alias("_ill_typed")
        wanted = _scan(self._files[table.name]).select(*columns, nothing)
        with _reading(table.name):
            yield from _whole_chunks(wanted.collect_batches(chunk_size=rows, maintain_order=True), rows)


def _whole_chunks(batches: Iterator[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """The same rows, `rows` in every frame but the last, however the reader cuts its batches."""
    kept = pl.DataFrame()
    for batch in batches:
        kept = batch if kept.is_empty() else pl.concat([kept, batch])
        while kept.height >= rows:
            yield kept.head(rows)
            kept = kept.slice(rows)
    if not kept.is_empty():
        yield kept


def _scan(path: Path) -> pl.LazyFrame:
    return pl.scan_csv(path, infer_schema=False)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = f"the source file of {name!r} cannot be read as CSV ({type(error).__name__})"
        raise SourceError(reason, stage="extract") from None
