"""Dead letters: events that a consumer group could not process, and the aggregates parked behind them.

Once an event of an aggregate is a dead letter, later events of that aggregate wait behind it in the
same table, in version order: nothing is skipped in silence and nothing overtakes. The row of a parked
aggregate is the one lock between the consumer, which adds to the end of its queue, and whoever re-drives
it from the front: it is gone, in one transaction, with the last letter. So a consumer that remembers an
aggregate as parked learns of its release when it locks the row to add an event and finds none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from eventsourcing.errors import HandlerError
from eventsourcing.events import BaseEvent, RecordedEvent
from eventsourcing.failures import Failure
from eventsourcing.folds import position_of
from eventsourcing.storage.base import StateTable, StateTransaction, Storage

DEAD_LETTERS = StateTable("dead-letters")
"""Key: group, aggregate_id and place in the queue, which is the position of an event that has one.
Value: {status, event, handler, attempts, redrives, parked_at}; of a failed one its failure too."""

PARKED = StateTable("parked-aggregates")
"""Key: group and aggregate_id. Value: {since, last, letters, redrives}, and the failure in front."""

PAGE = 100
"""How many letters are read at once."""

MAX_LOOKED_AT = 10_000
_SEPARATOR = "\x1f"
_BEYOND = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event that a group did not process: it failed, or it waits behind one that failed."""

    event: BaseEvent
    failure: HandlerError | None = None

    def value(self) -> dict[str, Any]:
        """The row to store."""
        now = datetime.now(UTC)
        row = {
            "status": "failed" if self.failure else "waiting",
            "event": self.event.model_dump(),
            "error": None,
            "handler": None,
            "attempts": 0,
            "redrives": 0,
            "parked_at": now,
        }
        return row if self.failure is None else {**row, **self.cause(), "first_failed_at": now}

    def cause(self) -> dict[str, Any]:
        """What is kept of the failure: error, class, stack, fingerprint, handler, attempts, moment."""
        assert self.failure is not None, "only a failed event has a cause"
        failure = Failure.of(self.failure.__cause__ or self.failure, self.event)
        return {
            "error": f"{failure.error_class}: {failure.message}",
            "error_class": failure.error_class,
            "stack": failure.stack,
            "fingerprint": failure.fingerprint,
            "handler": self.failure.handler,
            "attempts": self.failure.attempts,
            "last_failed_at": datetime.now(UTC),
        }


async def park(transaction: StateTransaction, group: str, letters: Sequence[DeadLetter]) -> None:
    """Store dead letters and park their aggregates, in the caller's transaction.

    `letters` stand in version order for each aggregate. One that is stored already keeps what is known
    of it; a second failure of it is added to that.
    """
    queues: dict[str, list[DeadLetter]] = defaultdict(list)
    for letter in letters:
        queues[letter.event.aggregate_id].append(letter)
    for aggregate_id in sorted(queues):  # one order of row locks for everyone: no deadlocks
        key = _parked_key(group, aggregate_id)
        parked = await transaction.get(PARKED, key, lock=True)
        if parked is None:
            parked = {"since": datetime.now(UTC), "last": 0, "letters": 0, "redrives": 0}
        for letter in queues[aggregate_id]:
            place = position_of(letter.event) or parked["last"] + 1
            parked["last"] = max(parked["last"], place)
            row = letter.value()
            if await transaction.add(DEAD_LETTERS, letter_key(group, aggregate_id, place), row):
                parked["letters"] += 1
            elif letter.failure is not None:
                row = await _failed(transaction, letter_key(group, aggregate_id, place), letter)
            if letter.failure is not None:
                parked.update(_headline(letter.event, row))
        await transaction.put(PARKED, key, parked)


async def lock_parked(transaction: StateTransaction, group: str, aggregates: Iterable[str]) -> set[str]:
    """Those of these aggregates that are parked, and stay so until the transaction ends.

    What is not among them was released: its events must be delivered, not parked.
    """
    found = set()
    for aggregate_id in sorted(aggregates):
        if await transaction.get(PARKED, _parked_key(group, aggregate_id), lock=True) is not None:
            found.add(aggregate_id)
    return found


async def parked_aggregates(storage: Storage, group: str) -> set[str]:
    """The aggregates of a group that wait behind a dead letter."""
    return {aggregate_id async for aggregate_id, _ in parked_rows(storage, group)}


async def parked_rows(
    storage: Storage, group: str, *, only: Sequence[str] = ()
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The parked aggregates of a group with their rows, by aggregate_id; of `only` these, where given."""
    prefix, after = f"{group}{_SEPARATOR}", None
    if only:
        async with storage.transaction() as transaction:
            named = await transaction.get_many(PARKED, [_parked_key(group, one) for one in only])
        for key in sorted(named):
            yield key.removeprefix(prefix), named[key]
        return
    while True:
        async with storage.transaction() as transaction:
            rows = await transaction.scan(PARKED, prefix=prefix, after=after)
        for key, row in rows:
            yield key.removeprefix(prefix), row
        if not rows:
            return
        after = rows[-1][0]


async def count_parked(transaction: StateTransaction, group: str) -> int:
    """How many aggregates of a group are parked."""
    return await transaction.count(PARKED, prefix=f"{group}{_SEPARATOR}")


async def parked_groups(storage: Storage) -> list[str]:
    """The groups that have parked aggregates, in order."""
    groups: list[str] = []
    async with storage.transaction() as transaction:
        after = None
        while rows := await transaction.scan(PARKED, after=after, limit=1):
            groups.append(rows[0][0].partition(_SEPARATOR)[0])
            after = f"{groups[-1]}{_SEPARATOR}{_BEYOND}"  # skip from one group to the next
    return groups


async def dead_letters(
    storage: Storage, group: str, *, aggregate_id: str | None = None, limit: int = 1000
) -> list[dict[str, Any]]:
    """A group's dead letters, or those of one aggregate, by aggregate and place."""
    async with storage.transaction() as transaction:
        return [row for _, row in await scan_letters(transaction, group, aggregate_id, limit=limit)]


async def page_of_letters(
    storage: Storage,
    *,
    group: str | None = None,
    aggregate_id: str | None = None,
    event_type: str | None = None,
    after: str | None = None,
    limit: int,
) -> tuple[list[tuple[str, dict[str, Any]]], str | None]:
    """The next letters with their keys, of one group or of all, and the key to go on after; None at the end.

    At most 10,000 letters are looked at: a page of a rare event type may be short.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    looked_at = 0
    for prefix in await _prefixes(storage, group, aggregate_id):
        while after is None or after < prefix + _BEYOND:
            async with storage.transaction() as transaction:
                rows = await transaction.scan(DEAD_LETTERS, prefix=prefix, after=after, limit=PAGE)
            for key, row in rows:
                if len(found) == limit or looked_at == MAX_LOOKED_AT:
                    return found, after
                after, looked_at = key, looked_at + 1
                if event_type in (None, row["event"]["event_type"]):
                    found.append((key, row))
            if len(rows) < PAGE:
                break
    return found, None


async def _prefixes(storage: Storage, group: str | None, aggregate_id: str | None) -> list[str]:
    """What the keys of these letters begin with, in order; one of them covers everything where it can."""
    if aggregate_id is None:
        return ["" if group is None else f"{group}{_SEPARATOR}"]
    groups = await parked_groups(storage) if group is None else [group]
    return [f"{name}{_SEPARATOR}{aggregate_id}{_SEPARATOR}" for name in groups]


async def scan_letters(
    transaction: StateTransaction, group: str, aggregate_id: str | None, *, limit: int
) -> list[tuple[str, dict[str, Any]]]:
    """The first letters of a group or of one aggregate with their keys, in the order of the queue."""
    prefix = f"{group}{_SEPARATOR}" + ("" if aggregate_id is None else f"{aggregate_id}{_SEPARATOR}")
    return await transaction.scan(DEAD_LETTERS, prefix=prefix, limit=limit)


async def remove_letter(transaction: StateTransaction, group: str, aggregate_id: str, key: str) -> bool:
    """Take a letter out of its aggregate's queue; with the last one the aggregate is released.

    False, and nothing changed, when the letter is not there.
    """
    parked = await transaction.get(PARKED, _parked_key(group, aggregate_id), lock=True)
    if await transaction.get(DEAD_LETTERS, key) is None:
        return False
    await transaction.delete(DEAD_LETTERS, key)
    if parked is not None and parked["letters"] > 1:
        row = {**parked, "letters": parked["letters"] - 1}
        await transaction.put(PARKED, _parked_key(group, aggregate_id), row)
    else:
        await transaction.delete(PARKED, _parked_key(group, aggregate_id))
    return True


async def fail_again(transaction: StateTransaction, group: str, key: str, letter: DeadLetter) -> None:
    """Record that a re-drive of a letter failed: it stays where it is, its counts grow."""
    aggregate_id = letter.event.aggregate_id
    parked = await transaction.get(PARKED, _parked_key(group, aggregate_id), lock=True)
    if parked is None or await transaction.get(DEAD_LETTERS, key) is None:
        return  # discarded meanwhile
    row = await _failed(transaction, key, letter, redriven=1)
    parked["redrives"] += 1
    parked.update(_headline(letter.event, row))
    await transaction.put(PARKED, _parked_key(group, aggregate_id), parked)


def letter_event(row: dict[str, Any]) -> BaseEvent:
    """The event of a stored letter, its payload at the newest version. Raises UpcastError."""
    fields = row["event"]
    if "position" not in fields:
        return BaseEvent.model_validate(fields)
    return RecordedEvent.from_store(dict(vars(RecordedEvent.model_validate(fields))))


def owner_of(key: str) -> tuple[str, str]:
    """The group and the aggregate of a letter's key. Raises ValueError for no key of a letter."""
    group, aggregate_id, _place = key.split(_SEPARATOR)
    return group, aggregate_id


def letter_key(group: str, aggregate_id: str, place: int) -> str:
    """Where the letter of an event stands."""
    return f"{group}{_SEPARATOR}{aggregate_id}{_SEPARATOR}{place:020d}"


async def _failed(
    transaction: StateTransaction, key: str, letter: DeadLetter, *, redriven: int = 0
) -> dict[str, Any]:
    """Add a failure to a stored letter, which keeps the time of its first one; return its row."""
    stored = await transaction.get(DEAD_LETTERS, key)
    assert stored is not None, "the caller saw it in this transaction"
    row: dict[str, Any] = dict(stored)
    cause = letter.cause()
    first = row["first_failed_at"] if row["status"] == "failed" else cause["last_failed_at"]
    row.update(
        cause,
        status="failed",
        attempts=cause["attempts"] + (row["attempts"] if redriven else 0),
        redrives=row["redrives"] + redriven,
        first_failed_at=first,
    )
    await transaction.put(DEAD_LETTERS, key, row)
    return row


def _headline(event: BaseEvent, cause: dict[str, Any]) -> dict[str, Any]:
    """What the row of a parked aggregate says of the failure in front."""
    names = ("error", "error_class", "fingerprint", "handler", "attempts", "last_failed_at")
    return {
        "event_type": str(event.event_type),
        "event_version": event.event_version,
        **{name: cause[name] for name in names},
    }


def _parked_key(group: str, aggregate_id: str) -> str:
    return f"{group}{_SEPARATOR}{aggregate_id}"
