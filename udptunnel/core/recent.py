"""Tables of what was in use lately: bounded, and what has been idle for too long leaves them."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nsmallest
from operator import attrgetter
from typing import Generic, Protocol, TypeVar


class Usable(Protocol):
    """What stands in such a table."""

    used: float
    """When it was in use last."""

    idle: float
    """How long it may be unused, in seconds."""


Key = TypeVar("Key")
Entry = TypeVar("Entry", bound=Usable)


class Recent(Generic[Key, Entry]):
    """
    Entries by their keys.

    @ivar most: how many there may be at once.
    @ivar get: the entry of a key, or C{None}.
    """

    def __init__(self, most: int) -> None:
        """
        @param most: how many there may be at once. One more makes those go
            that have been silent longest.
        """
        self.most = most
        self._table: dict[Key, Entry] = {}
        self.get = self._table.get

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._table.values()))

    def __contains__(self, key: object) -> bool:
        return key in self._table

    def put(self, key: Key, entry: Entry) -> None:
        """Put in a new one."""
        self._table[key] = entry

    def pop(self, key: Key) -> Entry | None:
        """Take one out; C{None} if there is none."""
        return self._table.pop(key, None)

    def surplus(self) -> list[Entry]:
        """
        Those that must go before one more may come: none while there is room.

        Some at once, so that a flood of new keys does not cost a walk through
        the table for each of them.
        """
        if len(self._table) < self.most:
            return []
        surplus = len(self._table) - self.most + 1
        return nsmallest(surplus + self.most // 64, self._table.values(), key=attrgetter("used"))

    def idle(self, now: float) -> list[Entry]:
        """Those that have been unused for too long."""
        return [each for each in self._table.values() if now - each.used >= each.idle]
