"""A set of positions kept as intervals: a run of a million positions costs one entry."""

from __future__ import annotations

from bisect import bisect_right


class PositionSet:
    """Positions seen so far. Adding in order is constant time."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, position: int) -> bool:
        """Add a position; False when it was there."""
        place = bisect_right(self._starts, position)
        if place and position <= self._ends[place - 1]:
            return False
        joins_left = place > 0 and self._ends[place - 1] == position - 1
        joins_right = place < len(self._starts) and self._starts[place] == position + 1
        if joins_left and joins_right:
            self._ends[place - 1] = self._ends.pop(place)
            self._starts.pop(place)
        elif joins_left:
            self._ends[place - 1] = position
        elif joins_right:
            self._starts[place] = position
        else:
            self._starts.insert(place, position)
            self._ends.insert(place, position)
        return True
