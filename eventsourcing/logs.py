"""Log lines: one JSON object each, or a line for people where a terminal reads them.

Every line carries what it belongs to: what the process is, the request, the event and its correlation, the
Dagster run. No line holds a secret: what looks like one is masked, and so are mail addresses. Of an error
that is not ours only the type and the places in the code are written, for its message may quote a record.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson

from eventsourcing.errors import EventSourcingError, HandlerError
from eventsourcing.secrets import redact
from eventsourcing.wording import counted

LogFormat = Literal["auto", "json", "text"]
"""`auto` is `text` on a terminal, `json` elsewhere."""

_MAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(\.[\w-]{1,63})+")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What moves a terminal's cursor, colours it, or turns the direction of what follows."""

_CONTEXT: ContextVar[Mapping[str, str]] = ContextVar("log-context", default={})  # noqa: B039 - never changed
_process: dict[str, str] = {}

_TALKATIVE = ("alembic", "httpx2", "httpx")
"""They write every address that they call, with its query, or every plugin that they load."""


def configure(
    level: str, log_format: LogFormat = "auto", *, stream: TextIO | None = None, **process: str
) -> None:
    """Write the log of this process from now on; `process` stands in every line, as in service="worker"."""
    stream = stream or sys.stderr
    text = log_format == "text" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextLines() if text else JsonLines())
    logging.basicConfig(level=level, handlers=[handler])
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    _process.update(process)


@contextmanager
def about(**ids: object) -> Iterator[None]:
    """Put these ids into every line written in this block, by whatever it calls; those that are None not."""
    given = {name: str(value) for name, value in ids.items() if value is not None}
    token = _CONTEXT.set({**_CONTEXT.get(), **given})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def note(**ids: object) -> None:
    """Put these ids into what the current task writes from now on."""
    _CONTEXT.set({**_CONTEXT.get(), **{name: str(value) for name, value in ids.items() if value is not None}})


def current(name: str) -> str | None:
    """The id of this name that lines carry now."""
    return _CONTEXT.get().get(name)


@contextmanager
def run_of(run_id: str) -> Iterator[None]:
    """Put the Dagster run into every line of the process: it executes one run at a time."""
    _process["dagster_run_id"] = run_id
    try:
        yield
    finally:
        _process.pop("dagster_run_id", None)


def spoken(error: BaseException) -> str:
    """What a line may say of an error: its message where it is ours, else its type alone.

    What a handler complained of stays with the dead letter, where `esm dlq show` finds it.
    """
    if isinstance(error, HandlerError):
        cause = type(error.__cause__).__name__ if error.__cause__ is not None else "the record"
        tried = counted(error.attempts, "attempt")
        return f"{error.handler} failed on event {error.event_id} after {tried}: {cause}"
    return str(error) if isinstance(error, EventSourcingError) else type(error).__name__


class JsonLines(logging.Formatter):
    """A record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": _moment(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _clean(record.getMessage()),
            **_ids(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _described(record.exc_info[1])
        return orjson.dumps(line, default=str).decode()


class TextLines(logging.Formatter):
    """A record as a line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; an error's places in the code follow it."""
        ids = "".join(f" {name}={value}" for name, value in _ids(record).items() if name != "service")
        moment = f"{_moment(record).astimezone():%H:%M:%S.%f}"[:-3]
        line = f"{moment} {record.levelname:<7} {record.name}: {_plain(_clean(record.getMessage()) + ids)}"
        if record.exc_info and record.exc_info[1] is not None:
            said = _described(record.exc_info[1])
            places = "".join(f"\n    {place}" for place in said["stack"])
            line += f"\n  {said['type']}: {_plain(said['message'])}{places}"
        return line


class DagsterLines(logging.StreamHandler[TextIO]):
    """What ops log through Dagster, as JSON lines on stderr; `resources/dagster.yaml` names it."""

    def __init__(self, level: int | str = logging.INFO) -> None:
        super().__init__()
        self.setLevel(level)
        self.setFormatter(JsonLines())


def _ids(record: logging.LogRecord) -> dict[str, str]:
    found = {**_process, **_CONTEXT.get()}
    run = getattr(record, "dagster_meta", None)  # of a line that came through Dagster
    if isinstance(run, Mapping) and run.get("run_id"):
        found["dagster_run_id"] = str(run["run_id"])
    return found


def _described(error: BaseException) -> dict[str, Any]:
    places = traceback.extract_tb(error.__traceback__)
    return {
        "type": type(error).__name__,
        "message": _clean(spoken(error)),
        "stack": [f"{place.filename}:{place.lineno} {place.name}" for place in places],
    }


def _clean(text: str) -> str:
    return _MAIL.sub("***", redact(text))


def _plain(text: str) -> str:
    """Text that looks like no other line, and like nothing but text, wherever it came from."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).replace("\n", "\n    ")


def _moment(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
