"""Reading ahead: the next item is made in a thread of its own while this one is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items in the same order, one of them made ahead. An error comes where its item would.

    Two items are in memory at a time. Databases and Polars work outside Python's lock, so reading and
    writing overlap. When the caller stops early, the item that is being made is waited for.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item
