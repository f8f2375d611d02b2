"""Tests for L{udptunnel.core.heartbeat}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.heartbeat import INTERVAL, MISSES, Heartbeat


class HeartbeatTests(SynchronousTestCase):
    """L{Heartbeat}."""

    def test_due(self) -> None:
        """A PING is due when none was sent for an interval, for whatever reason."""
        heartbeat = Heartbeat(5.0, now=100.0)
        self.assertFalse(heartbeat.due(104.9))
        self.assertTrue(heartbeat.due(105.0))
        heartbeat.pinged(103.0)
        self.assertFalse(heartbeat.due(107.9))
        self.assertTrue(heartbeat.due(108.0))

    def test_dead(self) -> None:
        """A link is dead when a PING had no answer for more than three intervals."""
        heartbeat = Heartbeat(5.0, now=0.0)
        heartbeat.pinged(5.0)
        self.assertFalse(heartbeat.dead(20.0))
        self.assertTrue(heartbeat.dead(20.1))

    def test_morePings(self) -> None:
        """More PINGs without answers do not give a dead link more time."""
        heartbeat = Heartbeat(5.0, now=0.0)
        for now in (5.0, 10.0, 15.0, 20.0):
            heartbeat.pinged(now)
        self.assertTrue(heartbeat.dead(20.1))

    def test_answered(self) -> None:
        """After an answer to the last PING, nothing is waited for, however long it takes to the next."""
        heartbeat = Heartbeat(5.0, now=0.0)
        heartbeat.pinged(5.0)
        heartbeat.ponged(5.0)
        self.assertFalse(heartbeat.dead(1000.0))
        heartbeat.pinged(1000.0)
        self.assertFalse(heartbeat.dead(1015.0))
        self.assertTrue(heartbeat.dead(1015.1))

    def test_answeredInPart(self) -> None:
        """An answer to an older PING does not count for those that were sent after it."""
        heartbeat = Heartbeat(5.0, now=0.0)
        heartbeat.pinged(5.0)
        heartbeat.pinged(10.0)
        heartbeat.ponged(5.0)
        self.assertFalse(heartbeat.dead(20.0))
        self.assertTrue(heartbeat.dead(25.1))

    def test_neverPinged(self) -> None:
        """A link that was asked nothing can not be blamed."""
        self.assertFalse(Heartbeat(5.0, now=0.0).dead(1e6))

    def test_usual(self) -> None:
        """A dead link is found within twenty seconds of its death, PINGs and all."""
        self.assertLessEqual(INTERVAL + MISSES * INTERVAL, 20.0)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.lists(st.floats(0.1, 5.0), max_size=30), st.floats(0.0, 5.0))
    def test_aliveIsNeverDead(self, gaps: list[float], roundTrip: float) -> None:
        """Whoever answers each PING within an interval is never taken for dead."""
        heartbeat, now = Heartbeat(5.0, now=0.0), 0.0
        waiting: list[float] = []
        for gap in gaps:
            now += gap
            while waiting and waiting[0] + roundTrip <= now:
                heartbeat.ponged(waiting.pop(0))
            self.assertFalse(heartbeat.dead(now))
            if heartbeat.due(now):
                heartbeat.pinged(now)
                waiting.append(now)
