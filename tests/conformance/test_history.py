"""The judge itself: each fault in a history is named, and a sound history has none."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest

from tests.conformance.history import Entry, Reading, Verdict, judge

STORED = [Entry(n, UUID(int=n), f"order-{n % 2}", (n + 1) // 2, "order.placed") for n in range(1, 7)]
IDS = {entry.event_id for entry in STORED}


def whole() -> Reading:
    reading = Reading("whole")
    reading.take(STORED[:3], 3)
    reading.take([], 4)
    reading.reached = 3
    reading.take(STORED[3:], 6)
    return reading


def test_a_sound_history_has_no_fault() -> None:
    verdict = judge(STORED, IDS, [whole()])
    assert verdict == Verdict(events=6)
    assert verdict.sound


def test_a_reader_is_not_asked_for_what_it_filters_out_or_has_not_reached() -> None:
    odd = Reading("odd", lambda entry: entry.aggregate_id == "order-1")
    odd.take([STORED[0], STORED[2]], 4)
    assert judge(STORED, IDS, [odd]).sound


def missing(reading: Reading) -> None:
    del reading.shown[2]


def shown_again(reading: Reading) -> None:
    reading.take(STORED[5:], 6)


def undone(reading: Reading) -> None:
    reading.take([Entry(7, UUID(int=7), "order-7", 1, "order.placed")], 7)


def out_of_order(reading: Reading) -> None:
    reading.shown[1:3] = reading.shown[2:0:-1]


def turned_back(reading: Reading) -> None:
    reading.take([], 2)


@pytest.mark.parametrize(
    ("spoil", "faults"),
    [
        (missing, {"missed": 1}),
        (shown_again, {"repeated": 1, "backwards": 2}),
        (undone, {"phantom": 1}),
        (out_of_order, {"backwards": 1}),
        (turned_back, {"backwards": 1}),
    ],
)
def test_each_fault_of_a_reader_is_named(spoil: Callable[[Reading], None], faults: dict[str, int]) -> None:
    reading = whole()
    spoil(reading)
    verdict = judge(STORED, IDS, [reading])
    assert verdict == Verdict(events=6, **faults)
    assert not verdict.sound


def test_an_acknowledged_event_that_is_not_stored_is_lost() -> None:
    assert judge(STORED, IDS | {UUID(int=99)}, []) == Verdict(events=6, lost=1)


def test_versions_that_run_against_the_positions_are_inverted() -> None:
    swapped = [Entry(n, UUID(int=n), "order-1", 3 - n, "order.placed") for n in (1, 2)]
    assert judge(swapped, set(), []) == Verdict(events=2, inverted=1)


def test_a_version_left_out_is_a_gap() -> None:
    gap = [Entry(n, UUID(int=n), "order-1", 2 * n - 1, "order.placed") for n in (1, 2)]
    assert judge(gap, set(), []) == Verdict(events=2, gaps=1)
