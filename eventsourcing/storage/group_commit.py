"""Group commit: appends that come while others are on their way go together, in one statement and one commit.

Nobody waits for company: an append that finds few others under way goes at once, and what comes meanwhile
goes when one of them lands. Each stays all or none by itself, and is answered by itself: a group that is
not stored in its first attempt is not stored at all, and each of its appends is then made alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from eventsourcing.errors import UnavailableError
from eventsourcing.events import RecordedEvent
from eventsourcing.storage.base import Appended, NewEvent

UNDER_WAY = 2
"""How many appends are under way before the next ones wait and go together: while one of them is on its
way to the disk, the other is made (measured: 1 and 4 are slower)."""

EVENTS_AT_MOST = 64
BYTES_AT_MOST = 1_000_000
"""How large a group grows."""

PATIENCE_S = 0.05
"""How long appends wait for others to land; those may be waiting for a lock."""

Alone = Callable[[Sequence[NewEvent], bool], Awaitable[Appended]]
"""Appends one caller's events; told whether they may be stored already, by an attempt that was lost."""

Together = Callable[[Sequence[NewEvent]], Awaitable[list[RecordedEvent] | None]]
"""Tries once to append the events of several callers; None when a constraint refused one of them."""


@dataclass(slots=True, eq=False)
class _Append:
    """One caller's events. The answer is what was stored, else whether the attempt was lost on its way."""

    events: Sequence[NewEvent]
    answer: asyncio.Future[Appended | bool]


class GroupCommit:
    """Sends appends alone or together."""

    def __init__(self, alone: Alone, together: Together) -> None:
        self._alone, self._together = alone, together
        self._under_way = 0
        self._waiting: list[_Append] = []
        self._impatience: asyncio.TimerHandle | None = None
        self._groups: set[asyncio.Task[None]] = set()

    async def append(self, events: Sequence[NewEvent]) -> Appended:
        """See EventStorage.append."""
        if len(events) > EVENTS_AT_MOST:
            return await self._alone(events, False)
        if self._under_way < UNDER_WAY and not self._waiting:
            self._under_way += 1
            try:
                return await self._alone(events, False)
            finally:
                self._landed()
        loop = asyncio.get_running_loop()
        append = _Append(events, loop.create_future())
        self._waiting.append(append)
        self._impatience = self._impatience or loop.call_later(PATIENCE_S, self._depart)
        answer = await append.answer
        return await self._alone(events, answer) if isinstance(answer, bool) else answer

    def _landed(self) -> None:
        self._under_way -= 1
        if self._waiting:
            self._depart()

    def _depart(self) -> None:
        """Send a group of those that wait, in the order they came."""
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None
        group, self._waiting = _group([each for each in self._waiting if not each.answer.done()])
        if self._waiting:
            self._impatience = asyncio.get_running_loop().call_later(PATIENCE_S, self._depart)
        if group:
            self._under_way += 1
            task = asyncio.create_task(self._send(group))
            self._groups.add(task)
            task.add_done_callback(self._groups.discard)

    async def _send(self, group: list[_Append]) -> None:
        lost = False
        stored: list[RecordedEvent] | None = None
        try:
            stored = await self._together([new for append in group for new in append.events])
        except UnavailableError as error:
            lost = error.outcome_unknown
        except Exception:  # noqa: BLE001 - whose fault it is shows when each append is made alone
            stored = None
        finally:
            self._landed()
            first = 0
            for append in group:
                last = first + len(append.events)
                if not append.answer.done():
                    append.answer.set_result(
                        lost if stored is None else Appended(stored[first:last], frozenset())
                    )
                first = last


def _group(waiting: list[_Append]) -> tuple[list[_Append], list[_Append]]:
    """Those that go together, and those that wait on. Two appends to one aggregate of which one names its
    version do not go together: all would be made alone when one of them loses."""
    group: list[_Append] = []
    rest: list[_Append] = []
    named: dict[str, bool] = {}
    count = size = 0
    for place, append in enumerate(waiting):
        versions: dict[str, bool] = {}
        for new in append.events:
            aggregate = new.event.aggregate_id
            versions[aggregate] = versions.get(aggregate, False) or new.version != 0
        if any(aggregate in named and (names or named[aggregate]) for aggregate, names in versions.items()):
            rest.append(append)
            continue
        count += len(append.events)
        size += sum(len(new.data) + len(new.metadata) for new in append.events)
        if group and (count > EVENTS_AT_MOST or size > BYTES_AT_MOST):
            rest += waiting[place:]
            break
        named.update(versions)
        group.append(append)
    return group, rest
