"""Log lines: what they carry, for whom they are written, and what never stands in one."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from eventsourcing import EventBusConfig, UserMigratedEvent, logs
from eventsourcing.breaker import CircuitBreaker
from eventsourcing.delivery import Delivery
from eventsourcing.errors import HandlerError, UnavailableError
from eventsourcing.events import BaseEvent
from eventsourcing.handlers import EventHandler
from eventsourcing.logs import JsonLines, TextLines, about, note, run_of, spoken

Lines = Callable[[], list[dict[str, Any]]]

CANARY = "canary-7f3a"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[logging.Logger, Lines]]:
    """A logger of a process that was told nothing, and what it wrote as JSON."""
    monkeypatch.setattr(logs, "_process", {})
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("test.lines")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger, lambda: [json.loads(line) for line in stream.getvalue().split("\n") if line]
    logger.removeHandler(handler)


def test_a_line_says_when_what_and_what_it_belongs_to(written: tuple[logging.Logger, Lines]) -> None:
    logger, lines = written
    correlation = uuid4()
    with about(request_id="r-1", correlation_id=correlation, event_id=None), run_of("run-1"):
        logger.info("stored %d events", 3)
    logger.info("after")
    first, second = lines()
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "INFO",
        "logger": "test.lines",
        "message": "stored 3 events",
        "request_id": "r-1",
        "correlation_id": str(correlation),
        "dagster_run_id": "run-1",
    }
    assert {"request_id", "correlation_id", "dagster_run_id"}.isdisjoint(second)


async def test_tasks_do_not_share_what_their_lines_belong_to(written: tuple[logging.Logger, Lines]) -> None:
    logger, lines = written

    async def one(name: str) -> None:
        with about(request_id=name):
            await asyncio.sleep(0)
            note(correlation_id=f"of-{name}")
            await asyncio.sleep(0)
            logger.info("%s", name)

    await asyncio.gather(*(one(f"r-{number}") for number in range(5)))
    assert all(line["request_id"] == line["message"] for line in lines())
    assert all(line["correlation_id"] == f"of-{line['message']}" for line in lines())


@pytest.mark.parametrize(
    "text",
    [
        f"password={CANARY}",
        f'{{"api_key": "{CANARY}"}}',
        f"postgresql://user:{CANARY}@host/name",
        f"Authorization: Bearer {CANARY}",
        f"cannot reach {CANARY}@example.org",
    ],
)
@pytest.mark.parametrize("form", [JsonLines(), TextLines()])
def test_no_secret_and_no_mail_address_stands_in_a_line(form: logging.Formatter, text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError as error:
        fault = (type(error), error, error.__traceback__)
    record = logging.LogRecord("a", logging.ERROR, __file__, 1, "failed: %s", (text,), fault)
    line = form.format(record)
    assert CANARY not in line
    assert "ValueError" in line
    assert "test_logs.py" in line


def test_of_an_error_that_is_not_ours_only_the_type_is_said() -> None:
    assert spoken(KeyError(CANARY)) == "KeyError"
    assert spoken(UnavailableError("the disk is full")) == "the disk is full"
    failure = HandlerError(UUID(int=1), handler="mail", attempts=4, reason=f"no such box: {CANARY}")
    failure.__cause__ = ValueError(CANARY)
    assert spoken(failure) == f"mail failed on event {UUID(int=1)} after 4 attempts: ValueError"


def test_a_line_stays_one_line(written: tuple[logging.Logger, Lines]) -> None:
    logger, lines = written
    logger.warning("two\nlines %s", "\u2028")
    assert len(lines()) == 1


class Talking(EventHandler):
    """Logs of every event that it gets."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def can_handle(self, event_type: str) -> bool:  # noqa: ARG002 - all
        return True

    async def handle(self, event: BaseEvent) -> None:  # noqa: ARG002 - only that it came
        self._logger.info("got it")


async def test_what_a_handler_logs_carries_the_event_and_its_correlation(
    written: tuple[logging.Logger, Lines],
) -> None:
    logger, lines = written
    event = UserMigratedEvent(
        user_id="user-1", username="u", source_data={}, target_data={}, correlation_id=uuid4()
    )
    delivery = Delivery(EventBusConfig(), CircuitBreaker("group", pause_s=1))
    await delivery.deliver(Talking(logger), event)
    (line,) = lines()
    assert line["event_id"] == str(event.event_id)
    assert line["correlation_id"] == str(event.correlation_id)


FORGED = "no mapping x\n12:00:00.000 INFO    esm.api: all is well\r\x1b[2J\x1b[1;31m\x00\x9b\u202eevil"


@pytest.mark.parametrize("lines", [TextLines(), JsonLines()])
def test_what_a_caller_sent_makes_no_line_of_its_own_and_moves_no_cursor(lines: logging.Formatter) -> None:
    try:
        raise UnavailableError(FORGED)
    except UnavailableError as error:
        told = (type(error), error, error.__traceback__)
    with about(request_id=FORGED):
        record = logging.LogRecord("esm", logging.WARNING, "", 0, "%s", (FORGED,), told)
        text = lines.format(record)
    assert not [line for line in text.split("\n")[1:] if not line.startswith("  ")]
    assert {"\r", "\x1b", "\x00"}.isdisjoint(text)
    if isinstance(lines, TextLines):
        assert {"\x9b", "\u202e"}.isdisjoint(text)
