"""What a run holds: some chunks at a time, however many there are, and nothing that awaits the collector."""

from __future__ import annotations

import gc
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from eventsourcing import EventStore, EventStoreConfig
from pipelines.migration import Progress, parse_mapping
from pipelines.migration.legacy_panel import generate_legacy_panel, mapping_path
from pipelines.migration.schema import Unique
from pipelines.migration.uniqueness import Distinct, shared
from tests.integration.migration.lab import Lab

CHUNK, CHUNKS = 50, 32


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is collected, and what stood before the test is not seen: a look takes no time for it."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def rows_held() -> int:
    """The rows of all frames that are alive, keys and hashes in series aside."""
    return sum(item.height for item in gc.get_objects() if isinstance(item, pl.DataFrame))


def files_held() -> int:
    """The files in memory that are alive and hold something."""
    files = (item for item in gc.get_objects() if type(item) is io.BytesIO)
    return sum(not file.closed and file.getbuffer().nbytes > 0 for file in files)


async def test_a_run_holds_some_chunks_at_a_time(
    new_lab: Callable[[], Lab], new_database: Callable[[], str], tmp_path: Path, no_collector: None
) -> None:
    generate_legacy_panel(tmp_path / "legacy.db", users=CHUNK * CHUNKS)
    mapping = parse_mapping(re.sub(r"rows: \d+", f"rows: {CHUNK}", mapping_path().read_text()))
    lab = replace(new_lab(), source_url=f"sqlite:///{tmp_path / 'legacy.db'}", mapping=mapping)
    held: dict[str, list[tuple[int, int]]] = {}

    def watch(progress: Progress) -> None:
        held.setdefault(progress.stage, []).append((rows_held(), files_held()))

    config = EventStoreConfig(database_url=new_database())
    async with EventStore(config) as store:
        await lab.migration(store, on_progress=watch).run()
    for stage in ("extract", "transform", "validate", "load"):
        rows, files = map(max, zip(*held[stage], strict=True))
        assert rows < CHUNK * CHUNKS / 2, f"{stage} holds the rows of {rows / CHUNK} chunks"
        assert files < CHUNKS / 4, f"{stage} leaves {files} files to the collector"


def test_uniqueness_holds_eight_bytes_a_record(no_collector: None) -> None:
    distinct = Distinct.under(Unique(("email",), ("email",)))
    for place in range(20):
        distinct.add(accepted(range(place * 100, place * 100 + 100)))
    held = [item for item in gc.get_objects() if isinstance(item, pl.Series | pl.DataFrame)]
    assert sum(item.estimated_size() for item in held) == 20 * 100 * 8
    assert rows_held() == 0


def test_records_that_share_a_value_are_found_in_whichever_chunks_they_stand() -> None:
    chunks = [accepted([1, 2, None]), accepted([3, 4, None]), accepted([5, 1, 3, 3])]
    chunks[2] = chunks[2].with_columns(pl.col("t:email").str.to_uppercase())
    distinct = [Distinct.under(Unique(("email",), folded)) for folded in (("email",), ())]
    distinct.append(Distinct("email, name", [pl.col("t:email"), pl.col("_key")]))
    for frame in chunks:
        for one in distinct:
            one.add(frame)
    folded, exact, together = (list(rows.iter_rows()) for rows in shared(distinct, chunks))
    assert folded == [("1", 0), ("3", 1), ("1", 2), ("3", 2), ("3", 2)]
    assert exact == together == [("3", 2), ("3", 2)]


def test_values_of_one_hash_are_told_apart() -> None:
    distinct = Distinct.under(Unique(("email",)))
    distinct.add(accepted([1, 2]))
    distinct.hashes.append(distinct.hashes[0])
    assert next(shared([distinct], [accepted([1, 2])])).is_empty()


def accepted(numbers: Iterable[int | None]) -> pl.DataFrame:
    emails = [None if number is None else f"user{number}@example.org" for number in numbers]
    return pl.DataFrame({"_key": [str(number) for number in numbers], "t:email": emails})
