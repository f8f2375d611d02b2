"""
Postboxes: what threads leave for the reactor.

It is fetched all at once, so that much that is left together costs one
wake-up; and a box has room for so much only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

MOST_ITEMS = 4096
MOST_BYTES = 8 << 20
"""What is taken in before the reactor comes for it."""


class Postbox(Generic[Item]):
    """Takes items from any thread, and hands them over in that of the reactor, in order."""

    def __init__(self, reactor: Any, fetched: Callable[[list[Item]], object]) -> None:
        """
        @param fetched: called with what has been left.
        """
        self._reactor = reactor
        self._fetched = fetched
        self._turn = threading.Lock()
        self._items: list[Item] = []
        self._bytes = 0
        self._open = True

    def leave(self, items: Sequence[Item], sizes: Sequence[int]) -> int:
        """
        Leave items.

        @param sizes: of each, in bytes.
        @return: for how many of them, from the first on, there was room.
        """
        with self._turn:
            isFirst = not self._items
            taken = self._take(items, sizes)
        if isFirst and taken:
            self._reactor.callFromThread(self.fetch)
        return taken

    def _take(self, items: Sequence[Item], sizes: Sequence[int]) -> int:
        taken = 0
        while self._open and taken < len(items):
            if len(self._items) >= MOST_ITEMS or self._bytes + sizes[taken] > MOST_BYTES:
                break
            self._items.append(items[taken])
            self._bytes += sizes[taken]
            taken += 1
        return taken

    def fetch(self) -> None:
        """
        Hand over what is in the box, in the thread of the reactor: before something that was asked for later is done.
        """
        with self._turn:
            items, self._items, self._bytes = self._items, [], 0
        if items:
            self._fetched(items)

    def close(self, fetch: bool = False) -> None:
        """
        Take nothing any more.

        @param fetch: whether what is in the box is handed over, in this thread; otherwise it is forgotten.
        """
        with self._turn:
            self._open = False
        if fetch:
            self.fetch()
        with self._turn:
            self._items, self._bytes = [], 0
