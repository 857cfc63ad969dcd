"""What this process measures, as Prometheus counts it: one prefix, base units, no label without a bound.

Counters and histograms are shared with the child processes that a service starts, in files of a folder that
only they use (`share`), so a scrape of the service tells what all of them did. What is a state and no count
(pools, circuits, open streams) is asked when it is scraped. docs/metrics.md lists every name.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram
    from prometheus_client.core import GaugeMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SHARED = "PROMETHEUS_MULTIPROC_DIR"
_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SLOW = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)

Reading = Mapping[tuple[str, ...], float]
"""The values of a gauge by the values of its labels; the only key of one without labels is ()."""

_gauges: dict[str, tuple[str, tuple[str, ...], Callable[[], Reading]]] = {}


@contextmanager
def share(name: str) -> Iterator[None]:
    """Count together with the child processes started in this block.

    Comes before anything is measured. `name` is of one process of this machine at a time; what a killed
    one left in its folder is removed.
    """
    folder = Path(tempfile.gettempdir()) / f"esm-metrics-{os.getuid()}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    os.environ[_SHARED] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(_SHARED, None)
        shutil.rmtree(folder, ignore_errors=True)


class Instruments:
    """The counters and histograms of a process."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram  # where it shares files is fixed by its import

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=None)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _FAST) -> Histogram:
            return Histogram(name, text, labels, registry=None, buckets=buckets)

        self.appended = counter(
            "es_events_appended_total", "Events by type; result is appended or found.", "event_type", "result"
        )
        self.append_seconds = histogram("es_append_duration_seconds", "Appends of one or several events.")
        self.conflicts = counter("es_append_conflicts_total", "Appends refused: another writer was first.")
        self.published = counter(
            "es_published_total", "Events brought to Kafka; result is published or refused.", "result"
        )
        self.handler_seconds = histogram(
            "es_handler_duration_seconds",
            "Attempts of handlers; result is ok or failed.",
            "handler",
            "result",
            buckets=_SLOW,
        )
        self.handler_retries = counter(
            "es_handler_retries_total", "Attempts after the first on one event.", "handler"
        )
        self.replayed = counter(
            "es_replay_events_total", "Events replayed; result is processed or failed.", "result"
        )
        self.http_seconds = histogram(
            "es_http_request_duration_seconds",
            "Requests answered, by the template of the path.",
            "method",
            "route",
            "status",
        )

    def all(self) -> Iterable[Counter | Histogram]:
        """Every one of them."""
        return vars(self).values()


@cache
def instruments() -> Instruments:
    """The instruments of this process, made when it first measures."""
    return Instruments()


def count_appended(types: Mapping[str, int], result: str = "appended") -> None:
    """Count events by type."""
    for event_type, number in types.items():
        _appended(event_type, result).inc(number)


@cache
def _appended(event_type: str, result: str) -> Counter:
    return instruments().appended.labels(event_type, result)


@contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Observe how long a block takes, however it ends."""
    began = time.perf_counter()
    try:
        yield
    finally:
        histogram.observe(time.perf_counter() - began)


def gauge(name: str, text: str, read: Callable[[], Reading], labels: tuple[str, ...] = ()) -> None:
    """Have a state of this process read at every scrape."""
    _gauges[name] = (text, labels, read)


def family(name: str, text: str, reading: Reading, labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    """A gauge with its values of now."""
    from prometheus_client.core import GaugeMetricFamily

    made = GaugeMetricFamily(name, text, labels=labels)
    for values, value in reading.items():
        made.add_metric(values, value)
    return made


def exposition(more: Iterable[GaugeMetricFamily] = ()) -> bytes:
    """Everything that this process and its children measured, and `more`, as Prometheus reads it.

    The cost depends on the number of names, labels and processes alone.
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    if _SHARED in os.environ:
        MultiProcessCollector(registry, os.environ[_SHARED])  # type: ignore[no-untyped-call]  # it is untyped
    else:
        for instrument in instruments().all():
            registry.register(instrument)
    registry.register(_Gauges([*more, *_own_gauges()]))
    return generate_latest(registry)


class _Gauges:
    """A collector of families that are made already."""

    def __init__(self, families: list[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return self._families


def _own_gauges() -> Iterator[GaugeMetricFamily]:
    for name, (text, labels, read) in _gauges.items():
        yield family(name, text, read(), labels)
    build: Reading = {(_version(), platform.python_version()): 1.0}
    yield family("es_build_info", "What runs here.", build, ("version", "python"))


def _tasks() -> Reading:
    try:
        return {(): len(asyncio.all_tasks())}
    except RuntimeError:  # no loop runs here
        return {}


gauge("es_tasks", "Tasks of the event loop that are not done.", _tasks)


def _version() -> str:
    try:
        return version("event-sourced-migration")
    except PackageNotFoundError:
        return "unknown"
