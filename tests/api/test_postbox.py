"""Tests for L{udptunnel.api.postbox}."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.api.postbox import MOST_BYTES, MOST_ITEMS, Postbox


class CallsFromThreads:
    """A reactor that is asked for one thing only."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def callFromThread(self, call: Callable[[], object]) -> None:
        self.calls.append(call)

    def turn(self) -> None:
        """Do what was asked for."""
        calls, self.calls = self.calls, []
        for each in calls:
            each()


class PostboxTests(SynchronousTestCase):
    """L{Postbox}."""

    def setUp(self) -> None:
        self.reactor = CallsFromThreads()
        self.fetched: list[list[Any]] = []
        self.box: Postbox[Any] = Postbox(self.reactor, self.fetched.append)

    def leave(self, *items: Any, size: int = 1) -> int:
        return self.box.leave(items, [size] * len(items))

    def test_together(self) -> None:
        """What is left before the reactor comes is fetched together, in order, for one wake-up."""
        for number in range(5):
            self.assertEqual(self.leave(number), 1)
        self.assertEqual(self.leave(5, 6), 2)
        self.assertEqual(len(self.reactor.calls), 1)
        self.reactor.turn()
        self.assertEqual(self.fetched, [[0, 1, 2, 3, 4, 5, 6]])
        self.leave(7)
        self.reactor.turn()
        self.assertEqual(self.fetched[1:], [[7]])

    def test_nothing(self) -> None:
        """Nothing wakes nobody."""
        self.assertEqual((self.leave(), self.reactor.calls), (0, []))

    def test_room(self) -> None:
        """A box takes so many items and bytes, and has room again when it was fetched from."""
        self.assertEqual(self.leave(*range(MOST_ITEMS + 1)), MOST_ITEMS)
        self.assertEqual(self.leave(0), 0)
        self.reactor.turn()
        self.assertEqual(self.leave("a", "b", "c", size=MOST_BYTES // 2), 2)
        self.assertEqual(self.leave("d"), 0)
        self.reactor.turn()
        self.assertEqual(self.fetched[1:], [["a", "b"]])

    def test_whileFetching(self) -> None:
        """What is left by whoever fetches comes with the next wake-up."""

        def fetched(items: list[Any]) -> None:
            self.fetched.append(items)
            self.leave("again")

        self.box = Postbox(self.reactor, fetched)
        self.leave("first")
        self.reactor.turn()
        self.assertEqual(len(self.reactor.calls), 1)
        self.reactor.turn()
        self.assertEqual(self.fetched, [["first"], ["again"]])

    def test_closed(self) -> None:
        """A box that is closed forgets what is in it, or hands it over for the last time; and takes nothing."""
        self.leave(1)
        self.box.close()
        self.assertEqual(self.leave(2), 0)
        self.reactor.turn()
        self.assertEqual(self.fetched, [])
        self.setUp()
        self.leave(1, 2)
        self.box.close(fetch=True)
        self.assertEqual((self.fetched, self.leave(3)), ([[1, 2]], 0))
        self.reactor.turn()
        self.assertEqual(self.fetched, [[1, 2]])

    def test_early(self) -> None:
        """What is in the box can be fetched before the reactor comes, which finds nothing then."""
        self.leave(1)
        self.box.fetch()
        self.reactor.turn()
        self.assertEqual(self.fetched, [[1]])
