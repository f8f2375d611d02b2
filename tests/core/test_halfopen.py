"""Tests for L{udptunnel.core.halfopen}."""

from __future__ import annotations

from random import Random as Dice

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.halfopen import HalfOpen

NEARLY_ONE = 1 - 2**-53


def makeHalfOpen(most: int = 3, random: float = 0.0, mostOfOne: int = 1000) -> HalfOpen[str]:
    """Room before the door for a few, and dice that always show the same."""
    return HalfOpen(most, mostOfOne, lambda: random)


def enter(halfOpen: HalfOpen[str], *connections: str) -> list[str | None]:
    """Let connections come whose sources are named by their first letters; returns who must go for each of them."""
    return [halfOpen.enter(each, each[0]) for each in connections]


class HalfOpenTests(SynchronousTestCase):
    """L{HalfOpen}."""

    def test_room(self) -> None:
        """While there is room nobody must go."""
        halfOpen = makeHalfOpen(most=3)
        self.assertEqual(enter(halfOpen, "a1", "b1", "a2"), [None, None, None])
        self.assertEqual(len(halfOpen), 3)
        self.assertIn("a1", halfOpen)
        self.assertNotIn("c1", halfOpen)

    def test_oneMore(self) -> None:
        """One more may always come: one of those before it must go, and is forgotten."""
        halfOpen = makeHalfOpen(most=2)
        self.assertEqual(enter(halfOpen, "a1", "b1", "c1"), [None, None, "a1"])
        self.assertEqual(len(halfOpen), 2)
        self.assertNotIn("a1", halfOpen)
        self.assertIn("c1", halfOpen)

    def test_theGreediest(self) -> None:
        """It is one of the source that has most that must go: whoever floods the door pushes out himself."""
        halfOpen = makeHalfOpen(most=4)
        enter(halfOpen, "a1", "f1", "b1", "f2")
        for number in range(3, 100):
            self.assertTrue(str(halfOpen.enter(f"f{number}", "f")).startswith("f"))
        self.assertIn("a1", halfOpen)
        self.assertIn("b1", halfOpen)

    def test_tooManyOfOne(self) -> None:
        """One more of a source that has too many of its own makes one of these go, though there is room for others."""
        halfOpen = makeHalfOpen(most=100, mostOfOne=2)
        self.assertEqual(enter(halfOpen, "b1", "b2", "a1", "a2", "a3", "c1"), [None, None, None, None, "a1", None])
        self.assertEqual(len(halfOpen), 5)
        halfOpen.leave("b1")
        self.assertEqual(enter(halfOpen, "b3"), [None])

    def test_crowd(self) -> None:
        """Where everybody comes from there is no such limit, but that of all counts."""
        halfOpen = makeHalfOpen(most=10, mostOfOne=2)
        gone = [halfOpen.enter(f"a{number}", "a", crowd=True) for number in range(12)]
        self.assertEqual(gone, [None] * 10 + ["a0", "a1"])

    def test_random(self) -> None:
        """Which one of them is a matter of chance, so that nobody knows how to keep his place."""
        for random, gone in ((0.0, "a1"), (0.34, "a2"), (0.67, "a3"), (NEARLY_ONE, "a3")):
            halfOpen = makeHalfOpen(most=3, random=random)
            self.assertEqual(enter(halfOpen, "a1", "a2", "a3", "a4")[-1], gone)

    def test_theNewestStays(self) -> None:
        """The newest has had no chance yet: it is never the one to go."""
        for random in (0.0, 0.5, NEARLY_ONE):
            halfOpen = makeHalfOpen(most=1, random=random)
            enter(halfOpen, "a1")
            self.assertEqual(enter(halfOpen, "a2", "b1", "a3"), ["a1", "a2", "b1"])

    def test_leave(self) -> None:
        """Whoever has logged in, or is gone, makes room."""
        halfOpen = makeHalfOpen(most=2)
        enter(halfOpen, "a1", "a2")
        halfOpen.leave("a1")
        self.assertEqual((enter(halfOpen, "a3"), len(halfOpen)), ([None], 2))

    def test_leaveTwice(self) -> None:
        """Leaving twice, or without having come, does no harm."""
        halfOpen = makeHalfOpen()
        enter(halfOpen, "a1", "a2")
        for each in ("a1", "a1", "z9"):
            halfOpen.leave(each)
        self.assertEqual((len(halfOpen), "a2" in halfOpen), (1, True))

    def test_forgetsSources(self) -> None:
        """Of sources that are gone nothing is kept: their number is not bounded."""
        halfOpen = makeHalfOpen(most=10)
        for number in range(1000):
            halfOpen.enter(f"{number}", f"source {number}")
        for number in range(1000):
            halfOpen.leave(f"{number}")
        self.assertEqual([len(table) for table in vars(halfOpen).values() if isinstance(table, dict)], [0, 0])

    def test_theWellMeaning(self) -> None:
        """Somebody who logs in within ten of a flood's connections gets in nearly always, though it has one source."""
        dice, gone = Dice(1), 0
        for _ in range(200):
            halfOpen: HalfOpen[int] = HalfOpen(256, 256, dice.random)
            for each in range(300):
                halfOpen.enter(each, "flood")
            halfOpen.enter(-1, "flood")
            gone += any(halfOpen.enter(1000 + each, "flood") == -1 for each in range(10))
        self.assertLess(gone, 30)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(
        st.integers(1, 5),
        st.integers(1, 6),
        st.lists(st.tuples(st.booleans(), st.integers(0, 15), st.integers(0, 3)), max_size=60),
        st.floats(0, 1, exclude_max=True),
    )
    def test_bounded(self, most: int, ofOne: int, steps: list[tuple[bool, int, int]], random: float) -> None:
        """Whatever happens, no more than so many wait, and each that must go did wait and is not the newest."""
        halfOpen: HalfOpen[int] = HalfOpen(most, ofOne, lambda: random)
        sources: dict[int, int] = {}
        waiting: set[int] = set()
        for comes, connection, source in steps:
            if comes and connection not in waiting:
                surplus = halfOpen.enter(connection, f"source {source}")
                if surplus is not None:
                    self.assertIn(surplus, waiting)
                    waiting.remove(surplus)
                waiting.add(connection)
                sources[connection] = source
                self.assertLessEqual(sum(sources[each] == source for each in waiting), ofOne)
            elif not comes:
                halfOpen.leave(connection)
                waiting.discard(connection)
            self.assertEqual({each for each in range(16) if each in halfOpen}, waiting)
            self.assertEqual(len(halfOpen), len(waiting))
            self.assertLessEqual(len(halfOpen), most)
