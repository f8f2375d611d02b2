"""
Connections that are not logged in yet: few, and none for long.

A door that shuts when too many stand before it shuts out everybody. So one
more may always come; it is one of those that wait already that must go, chosen
at random among those of the source that has most of them. A login takes a
moment, hence it is hardly ever one that means well. The same happens to a
source that has too many of its own, though there is room for others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Connection = TypeVar("Connection", bound=Hashable)


class HalfOpen(Generic[Connection]):
    """Keeps those that are not logged in."""

    def __init__(self, most: int, mostOfOne: int, random: Callable[[], float]) -> None:
        """
        @param most: how many there may be.
        @param mostOfOne: how many of one source.
        @param random: makes a number from 0 to below 1.
        """
        self._most = most
        self._mostOfOne = mostOfOne
        self._random = random
        self._sources: dict[Connection, str] = {}
        self._bySource: dict[str, list[Connection]] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._sources

    def enter(self, connection: Connection, source: str, crowd: bool = False) -> Connection | None:
        """
        One more has come.

        @param source: the host that it is from.
        @param crowd: whether everybody may come from there, so that it has no limit of its own.
        @return: one that must go.
        """
        self._sources[connection] = source
        waiting = self._bySource.setdefault(source, [])
        waiting.append(connection)
        if len(waiting) > self._mostOfOne and not crowd:
            return self._chosen(waiting)
        if len(self._sources) > self._most:
            return self._chosen(max(self._bySource.values(), key=len))
        return None

    def _chosen(self, waiting: list[Connection]) -> Connection:
        # The newest has just come, and had no chance yet.
        chosen = waiting[int(self._random() * max(1, len(waiting) - 1))]
        self.leave(chosen)
        return chosen

    def leave(self, connection: Connection) -> None:
        """One has logged in, or is gone."""
        source = self._sources.pop(connection, None)
        if source is not None:
            waiting = self._bySource[source]
            waiting.remove(connection)
            if not waiting:
                del self._bySource[source]
