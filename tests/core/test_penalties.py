"""Tests for L{udptunnel.core.penalties}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.penalties import BARRED_SECONDS, FAILURES, MOST_SOURCES, WITHIN_SECONDS, Penalties

SOURCE = "192.0.2.1"


def fail(penalties: Penalties, *moments: float, source: str = SOURCE) -> None:
    """Let logins fail at some times."""
    for now in moments:
        penalties.failed(source, now)


class PenaltiesTests(SynchronousTestCase):
    """L{Penalties}."""

    def test_constants(self) -> None:
        """Five failures within a minute bar a source for half a minute."""
        self.assertEqual((FAILURES, WITHIN_SECONDS, BARRED_SECONDS), (5, 60.0, 30.0))

    def test_free(self) -> None:
        """Who never failed, or failed four times, is free."""
        penalties = Penalties()
        self.assertFalse(penalties.barred(SOURCE, 0.0))
        fail(penalties, 0.0, 0.1, 0.2, 0.3)
        self.assertFalse(penalties.barred(SOURCE, 0.4))

    def test_barred(self) -> None:
        """The fifth failure within a minute bars, from then on, for half a minute."""
        penalties = Penalties()
        fail(penalties, 0.0, 10.0, 20.0, 30.0, 60.0)
        for now in (60.0, 75.0, 89.9):
            self.assertTrue(penalties.barred(SOURCE, now))
        for now in (90.0, 91.0):
            self.assertFalse(penalties.barred(SOURCE, now))

    def test_slow(self) -> None:
        """Five failures that take longer than a minute do not bar: somebody mistypes now and then."""
        penalties = Penalties()
        fail(penalties, 0.0, 20.0, 40.0, 60.0, 60.1)
        self.assertFalse(penalties.barred(SOURCE, 60.1))

    def test_again(self) -> None:
        """Who was barred begins anew: it takes five more failures to be barred again."""
        penalties = Penalties()
        fail(penalties, 0.0, 0.0, 0.0, 0.0, 0.0)
        fail(penalties, 30.0, 30.0, 30.0, 30.0)
        self.assertFalse(penalties.barred(SOURCE, 30.0))
        fail(penalties, 30.0)
        self.assertTrue(penalties.barred(SOURCE, 59.9))
        self.assertFalse(penalties.barred(SOURCE, 60.0))

    def test_others(self) -> None:
        """Nobody is barred for what another source did."""
        penalties = Penalties()
        for number in range(4 * FAILURES):
            penalties.failed(f"192.0.2.{number}", 0.0)
        fail(penalties, *[0.0] * FAILURES)
        self.assertEqual(
            [penalties.barred(f"192.0.2.{number}", 0.0) for number in range(5)], [False, True] + [False] * 3
        )

    def test_bounded(self) -> None:
        """Sources without number do not fill the memory: those that failed longest ago are forgotten."""
        penalties = Penalties()
        for number in range(3 * MOST_SOURCES):
            for _ in range(1 + number % 2 * (FAILURES - 1)):
                penalties.failed(str(number), 0.0)
        tables = list(vars(penalties).values())
        self.assertEqual(max(map(len, tables)), MOST_SOURCES)
        self.assertTrue(penalties.barred(str(3 * MOST_SOURCES - 1), 0.0))
        self.assertFalse(penalties.barred("1", 0.0))

    def test_theNewestIsKept(self) -> None:
        """However many sources fail once, one that fails on and on is barred."""
        penalties = Penalties()
        for number in range(FAILURES):
            fail(penalties, 0.0)
            for other in range(MOST_SOURCES - 1):
                penalties.failed(f"{number} {other}", 0.0)
        self.assertTrue(penalties.barred(SOURCE, 0.0))

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.lists(st.floats(0.0, 40.0), max_size=30))
    def test_neverUnjust(self, gaps: list[float]) -> None:
        """Whoever is barred has failed five times within a minute, not long ago, and is free half a minute later."""
        penalties, now, failures = Penalties(), 0.0, [-1e9] * FAILURES
        for gap in gaps:
            now += gap
            if penalties.barred(SOURCE, now):
                self.assertLess(now - failures[-1], BARRED_SECONDS)
                self.assertLessEqual(failures[-1] - failures[-FAILURES], WITHIN_SECONDS)
            else:
                penalties.failed(SOURCE, now)
                failures.append(now)
        self.assertFalse(penalties.barred(SOURCE, now + BARRED_SECONDS))
