"""Tests for L{udptunnel.core.pace}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.pace import BUSY_RATE, KEPT_SHARE, RESTLESS_SECONDS, SLOW_SPANS, SPAN, Pace

BUSY = 2 * BUSY_RATE
"""A rate that is more than busy."""


class PaceTests(SynchronousTestCase):
    """L{Pace}."""

    def setUp(self) -> None:
        self.pace = Pace()
        self.now = 100.0
        self.pace.wantsRest(self.now)

    def spans(self, rate: float, spans: int = 1) -> bool:
        """Let datagrams come at a rate for some spans; whether the port rests at the end."""
        rests = False
        for _ in range(spans):
            self.now += SPAN * 1.01
            self.pace.took(int(rate * SPAN * 1.01))
            rests = self.pace.wantsRest(self.now)
        return rests

    def test_busy(self) -> None:
        """A port rests after a span with many datagrams, and not any more after one with few before it was slowed."""
        self.assertFalse(self.spans(0.9 * BUSY_RATE))
        self.assertTrue(self.spans(1.1 * BUSY_RATE))
        self.assertFalse(self.spans(0.9 * BUSY_RATE))

    def test_span(self) -> None:
        """Nothing is judged before a span is over, and all that was read in it counts, wherever it was left to read."""
        self.pace.took(int(BUSY * SPAN))
        self.assertFalse(self.pace.wantsRest(self.now + SPAN / 2))
        self.pace.took(int(BUSY * SPAN / 10))
        self.assertTrue(self.pace.wantsRest(self.now + 1.01 * SPAN))

    def test_waiting(self) -> None:
        """Senders that wait for answers send less when it rests, and go on doing so: it rests no more for a second."""
        self.assertTrue(self.spans(BUSY))
        slowed = BUSY * KEPT_SHARE * 0.9
        self.assertTrue(self.spans(slowed, SLOW_SPANS - 1))
        self.assertFalse(self.spans(slowed))
        found = self.now
        while self.now - found < RESTLESS_SECONDS - 2 * SPAN:
            self.assertFalse(self.spans(BUSY))
        self.assertTrue(self.spans(BUSY, 4))

    def test_hiccup(self) -> None:
        """It goes on resting if less comes for a moment only, however often that is so."""
        self.spans(BUSY)
        for _ in range(5):
            self.assertTrue(self.spans(0, SLOW_SPANS - 1))
            self.assertTrue(self.spans(BUSY))
