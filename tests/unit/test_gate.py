"""The order gate and the books on offsets, against every order of arrival."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, cast

from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from eventsourcing.gate import Arrival, OrderGate, newest_predecessor
from eventsourcing.transport.kafka_offsets import Offsets, Origin
from tests.factories import draft, recorded


def arrivals(types: list[str], wanted: set[str]) -> list[Arrival]:
    """One aggregate's events of the wanted types, with the predecessors that the relay would stamp."""
    before: dict[str, int] = {}
    made = []
    for version, kind in enumerate(types, start=1):
        if kind in wanted:
            event = recorded(draft("order-1", kind), position=version, version=version)
            newest = newest_predecessor(before, wanted.__contains__)
            made.append(Arrival("order-1", version, event, 0, newest))
        before[kind] = version
    return made


@given(
    types=st.lists(st.sampled_from("abcd"), min_size=1, max_size=20),
    wanted=st.sets(st.sampled_from("abcd"), min_size=1),
    seed=st.integers(0, 2**32),
)
def test_any_set_of_types_in_any_order_goes_through_in_order_and_once(
    types: list[str], wanted: set[str], seed: int
) -> None:
    chance = random.Random(seed)
    expected = arrivals(types, wanted)
    coming = expected + chance.choices(expected, k=5) if expected else []
    chance.shuffle(coming)
    gate = OrderGate()
    gate.open("order-1", seen=0, parked=False, partition=0)
    passed: list[Arrival] = []
    for arrival in coming:
        gate.offer(arrival)
        passed += gate.take("order-1", 0.0)

    assert [arrival.version for arrival in passed] == [arrival.version for arrival in expected]


def test_what_a_checkpoint_is_past_is_a_repetition() -> None:
    gate = OrderGate()
    gate.open("order-1", seen=2, parked=False, partition=0)
    first, second, third = arrivals(["a", "a", "a"], {"a"})

    assert [gate.offer(one) for one in (first, second, third, third)] == [False, False, True, False]
    assert gate.take("order-1", 0.0) == [third]


def test_a_stream_is_stuck_from_when_nothing_could_pass() -> None:
    gate = OrderGate()
    gate.open("order-1", seen=0, parked=False, partition=0)
    first, second, third = arrivals(["a", "a", "a"], {"a"})
    gate.offer(third)
    gate.take("order-1", 10.0)
    gate.take("order-1", 15.0)
    assert gate.stuck(since=9.0) == []
    assert gate.stuck(since=10.0) == ["order-1"]

    gate.offer(first)
    gate.take("order-1", 20.0)
    assert gate.stuck(since=15.0) == []

    gate.offer(second)
    gate.take("order-1", 30.0)
    assert gate.stuck(since=100.0) == []


def test_only_idle_streams_are_forgotten() -> None:
    gate = OrderGate(size=1)
    for number in range(4):
        gate.open(f"order-{number}", seen=0, parked=False, partition=0)
    gate["order-0"].busy = True
    gate["order-1"].unsettled = 1
    gate.trim()

    assert gate.unknown(f"order-{number}" for number in range(4)) == ["order-2", "order-3"]


@dataclass
class Sized:
    """A message of a size."""

    size: int = 1

    def __len__(self) -> int:
        return self.size


def origin(offset: int, *, topic: str = "a", size: int = 1) -> Origin:
    return Origin((topic, 0), offset, cast(Message, Sized(size)))


@given(st.permutations(range(8)))
def test_only_the_contiguous_done_prefix_is_committed(order: list[int]) -> None:
    offsets = Offsets(most=100, most_bytes=100)
    offsets.assign([("a", 0)])
    origins = [origin(offset * 3) for offset in range(8)]  # offsets have holes
    for one in origins:
        offsets.add(one)
    done: set[int] = set()
    committed = 0
    for place in order:
        offsets.done(origins[place])
        done.add(place)
        prefix = next((number for number in range(8) if number not in done), 8)
        for offset in offsets.committable().values():
            committed = offset
        assert committed == (origins[prefix - 1].offset + 1 if prefix else 0)
    assert offsets.committable() == {}


def test_each_partition_has_its_share_by_number_and_by_size() -> None:
    offsets = Offsets(most=8, most_bytes=1000)
    offsets.assign([("a", 0), ("b", 0)])
    for offset in range(4):
        offsets.add(origin(offset))
    assert offsets.pressure() == ([("a", 0)], [])
    assert offsets.pressure() == ([], [])
    offsets.done(origin(0))
    assert offsets.pressure() == ([], [])
    offsets.done(origin(1))
    assert offsets.pressure() == ([], [("a", 0)])
    offsets.add(origin(0, topic="b", size=500))
    assert offsets.pressure() == ([("b", 0)], [])


def test_what_is_done_after_a_partition_went_counts_for_nothing() -> None:
    offsets = Offsets(most=8, most_bytes=1000)
    offsets.assign([("a", 0)])
    offsets.add(origin(0))
    offsets.forget([("a", 0)])
    offsets.done(origin(0))

    assert offsets.committable() == {}
    assert not offsets.assigned(("a", 0))


def test_a_consumer_that_wants_no_predecessor_waits_for_none() -> None:
    versions: dict[str, Any] = {"a": 3, "b": 5}
    assert newest_predecessor(versions, lambda kind: kind == "a") == 3
    assert newest_predecessor(versions, lambda kind: kind == "c") == 0
