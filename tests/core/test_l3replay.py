"""Tests for L{udptunnel.core.l3replay}: WireGuard's cases for counters, and a model."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.l3replay import MOST_MESSAGES, WINDOW, ReplayWindow

several = settings(max_examples=min(EXAMPLES, 300), deadline=None)

LIMIT = WINDOW + 1

CASES = (
    (0, True),
    (1, True),
    (1, False),
    (9, True),
    (8, True),
    (7, True),
    (7, False),
    (LIMIT, True),
    (LIMIT - 1, True),
    (LIMIT - 1, False),
    (LIMIT - 2, True),
    (2, True),
    (2, False),
    (LIMIT + 16, True),
    (3, False),
    (LIMIT + 16, False),
    (LIMIT * 4, True),
    (LIMIT * 4 - (LIMIT - 1), True),
    (10, False),
    (LIMIT * 4 - LIMIT, False),
    (LIMIT * 4 - (LIMIT + 1), False),
    (LIMIT * 4 - (LIMIT - 2), True),
    (LIMIT * 4 + 1 - LIMIT, False),
    (0, False),
    (MOST_MESSAGES, False),
    (MOST_MESSAGES - 1, True),
    (MOST_MESSAGES, False),
    (MOST_MESSAGES - 1, False),
    (MOST_MESSAGES - 2, True),
    (MOST_MESSAGES + 1, False),
    (MOST_MESSAGES + 2, False),
    (MOST_MESSAGES - 2, False),
    (MOST_MESSAGES - 3, True),
    (0, False),
)
"""Counters one after the other, and whether each is good."""


class ReplayTests(SynchronousTestCase):
    """L{ReplayWindow}."""

    def assertAccepts(self, counters: range, *then: tuple[int, bool]) -> None:
        window = ReplayWindow()
        for counter in counters:
            self.assertTrue(window.accept(counter), counter)
        for counter, expected in then:
            self.assertEqual(window.accept(counter), expected, counter)

    def test_cases(self) -> None:
        """In order, skipped, backwards, beyond the window, twice, and at the end of all numbers."""
        window = ReplayWindow()
        for number, (counter, expected) in enumerate(CASES):
            self.assertEqual(window.accept(counter), expected, number)

    def test_series(self) -> None:
        """Whole windows, upwards and downwards, and what is just inside and outside of them."""
        self.assertAccepts(range(1, WINDOW + 1), (0, True), (0, False))
        self.assertAccepts(range(2, WINDOW + 2), (1, True), (0, False))
        self.assertAccepts(range(WINDOW, -1, -1))
        self.assertAccepts(range(WINDOW + 1, 0, -1), (0, False))
        self.assertAccepts(range(WINDOW, 0, -1), (WINDOW + 1, True), (0, False))
        self.assertAccepts(range(WINDOW, 0, -1), (0, True), (WINDOW + 1, True))

    @several
    @given(st.lists(st.lists(st.integers(0, 3 * WINDOW), max_size=70), max_size=20))
    def test_model(self, bursts: list[list[int]]) -> None:
        """It says what a set of all counters would; bursts at once and their counters one by one are the same."""
        window, seen, greatest = ReplayWindow(), set[int](), 0
        for burst in bursts:
            expected = []
            for counter in burst:
                expected.append(counter not in seen and counter >= greatest - WINDOW)
                if expected[-1]:
                    seen.add(counter)
                    greatest = max(greatest, counter)
            self.assertEqual(window.acceptAll(burst) or [True] * len(burst), expected)

    @several
    @given(st.lists(st.tuples(st.integers(0, 4 * WINDOW), st.integers(1, 200)), max_size=20))
    def test_runs(self, runs: list[tuple[int, int]]) -> None:
        """Counters that follow each other are remembered at once as well as one by one."""
        together, single = ReplayWindow(), ReplayWindow()
        for first, length in runs:
            counters = list(range(first, first + length))
            expected = [single.accept(counter) for counter in counters]
            self.assertEqual(together.acceptAll(counters) or [True] * length, expected)

    def test_turn(self) -> None:
        """When the bitmap has gone round, nothing is left of what stood there."""
        window, turn = ReplayWindow(), WINDOW + 64
        self.assertIsNone(window.acceptAll(list(range(64))))
        self.assertIsNone(window.acceptAll(list(range(turn + 32, turn + 64))))
        self.assertTrue(all(window.accept(counter) for counter in range(turn, turn + 32)))

    def test_lastRun(self) -> None:
        """A burst at the end of all numbers is taken as far as they go."""
        window = ReplayWindow()
        counters = list(range(MOST_MESSAGES - 2, MOST_MESSAGES + 2))
        self.assertEqual(window.acceptAll(counters), [True, True, False, False])
        self.assertIsNone(ReplayWindow().acceptAll([]))

    def test_farApart(self) -> None:
        """Counters of one burst may be any distance apart; what lies between them costs nothing."""
        window = ReplayWindow()
        self.assertEqual(window.acceptAll([0, 1 << 50]), [True, True])
        self.assertEqual(window.acceptAll([1 << 50, 0, 1 << 51]), [False, False, True])
