"""One event type through its life: the class as three releases of a team's code declare it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from eventsourcing import OCCURRED, EventPayload, TypedEvent, events, register_event, upcast, upcasting

TYPE = "test.seat.reserved"


def two_names(data: dict[str, Any]) -> dict[str, Any]:
    """Version 1 to 2: `passenger` becomes `given_name` and `family_name`."""
    given, _, family = data.pop("passenger").partition(" ")
    return {**data, "given_name": given, "family_name": family}


def release(number: int) -> type[TypedEvent]:
    """Register the class as the release with this number has it."""
    return register_event({1: _first, 2: _second, 3: _third}[number]())


def _first() -> type[TypedEvent]:
    class SeatReserved(TypedEvent, event_type=TYPE, aggregate_type="seat", id_field="seat_id"):
        """A seat was taken."""

        class Payload(EventPayload):
            passenger: str
            reserved_at: datetime = OCCURRED

    return _as_one(SeatReserved)


def _second() -> type[TypedEvent]:
    class SeatReserved(
        TypedEvent, event_type=TYPE, aggregate_type="seat", id_field="seat_id", schema_version=2
    ):
        """A seat was taken."""

        class Payload(EventPayload):
            given_name: str
            family_name: str
            reserved_at: datetime = OCCURRED

        _two_names = upcast(1)(two_names)

    return _as_one(SeatReserved)


def _third() -> type[TypedEvent]:
    class SeatReserved(
        TypedEvent, event_type=TYPE, aggregate_type="seat", id_field="seat_id", schema_version=3
    ):
        """A seat was taken."""

        class Payload(EventPayload):
            given_name: str
            family_name: str
            party: int
            reserved_at: datetime = OCCURRED

        _two_names = upcast(1)(two_names)

        @upcast(2)
        def _alone(data: dict[str, Any]) -> dict[str, Any]:
            return {**data, "party": 1}

    return _as_one(SeatReserved)


def _as_one(cls: type[TypedEvent]) -> type[TypedEvent]:
    """The same class at another time has the same name."""
    cls.__qualname__ = "SeatReserved"
    return cls


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    monkeypatch.setattr(events, "_registry", dict(events._registry))
    monkeypatch.setattr(upcasting, "_lineages", dict(upcasting._lineages))
    versioned = set(upcasting.VERSIONED)
    yield
    upcasting.VERSIONED.clear()
    upcasting.VERSIONED.update(versioned)
