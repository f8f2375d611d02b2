"""Tests for L{udptunnel.core.heartbeat}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.heartbeat import INTERVAL, LATE_SECONDS, MISSES, Heartbeat


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

    def test_dueWhileBursts(self) -> None:
        """While bursts arrive a PING is due after three intervals; an interval after the last one it is due as ever."""
        heartbeat = Heartbeat(5.0, now=0.0)
        for now in range(0, 15):
            heartbeat.heardAt = now
            self.assertFalse(heartbeat.due(now + 0.9))
        heartbeat.heardAt = 15.0
        self.assertTrue(heartbeat.due(15.0))
        heartbeat.pinged(15.0)
        heartbeat.heardAt = 16.0
        self.assertFalse(heartbeat.due(20.9))
        self.assertTrue(heartbeat.due(21.0))

    def test_dead(self) -> None:
        """A link is dead when a PING had no answer for more than two intervals."""
        heartbeat = Heartbeat(5.0, now=0.0)
        heartbeat.pinged(5.0)
        self.assertFalse(heartbeat.dead(15.0))
        self.assertTrue(heartbeat.dead(15.1))

    def test_burstsAreNoAnswer(self) -> None:
        """Bursts alone do not keep a link alive: they tell nothing of the other direction."""
        heartbeat = Heartbeat(5.0, now=0.0)
        heartbeat.pinged(5.0)
        heartbeat.heardAt = 15.0
        self.assertTrue(heartbeat.dead(15.1))

    def test_morePings(self) -> None:
        """More PINGs without answers do not give a dead link more time."""
        heartbeat = Heartbeat(5.0, now=0.0)
        for now in (5.0, 10.0, 15.0):
            heartbeat.pinged(now)
        self.assertTrue(heartbeat.dead(15.1))

    def test_answered(self) -> None:
        """After an answer to the last PING, nothing is waited for, however long it takes to the next."""
        heartbeat = Heartbeat(5.0, now=0.0)
        heartbeat.pinged(5.0)
        heartbeat.ponged(5.0, now=5.0)
        self.assertFalse(heartbeat.dead(1000.0))
        heartbeat.pinged(1000.0)
        self.assertFalse(heartbeat.dead(1010.0))
        self.assertTrue(heartbeat.dead(1010.1))

    def test_answeredInPart(self) -> None:
        """An answer to an older PING does not count for those that were sent after it."""
        heartbeat = Heartbeat(5.0, now=0.0)
        heartbeat.pinged(5.0)
        heartbeat.pinged(10.0)
        heartbeat.ponged(5.0, now=5.0)
        self.assertFalse(heartbeat.dead(15.0))
        self.assertTrue(heartbeat.dead(20.1))

    def test_slow(self) -> None:
        """Whose answers come slowly, one after the other, is alive: two intervals count from the last one."""
        heartbeat = Heartbeat(5.0, now=0.0)
        for now in (1.0, 2.0, 3.0):
            heartbeat.pinged(now)
        heartbeat.ponged(1.0, now=11.0)
        self.assertFalse(heartbeat.late(12.0, 0.0))
        heartbeat.ponged(2.0, now=20.0)
        self.assertFalse(heartbeat.dead(30.0))
        self.assertTrue(heartbeat.dead(30.1))

    def test_unasked(self) -> None:
        """An answer to nothing is told from one, and changes nothing."""
        heartbeat = Heartbeat(5.0, now=0.0)
        for sentAt in (0.0, 4.0, 1e9):
            self.assertFalse(heartbeat.ponged(sentAt, 5.0))
        heartbeat.pinged(5.0)
        for sentAt in (0.0, 4.999999):
            self.assertFalse(heartbeat.ponged(sentAt, 5.0))
        self.assertTrue(heartbeat.late(6.1, 0.0))
        self.assertTrue(heartbeat.dead(15.1))

    def test_neverSent(self) -> None:
        """Nor does the answer to a PING that was never sent count for those that were."""
        heartbeat = Heartbeat(5.0, now=0.0)
        heartbeat.pinged(5.0)
        heartbeat.pinged(10.0)
        for sentAt in (5.000001, 9.0, 10.000001, 2**64 / 1e6):
            self.assertFalse(heartbeat.ponged(sentAt, 5.0))
        self.assertTrue(heartbeat.dead(15.1))

    def test_once(self) -> None:
        """Each PING is answered once, though several be of one moment."""
        heartbeat = Heartbeat(5.0, now=0.0)
        for now in (1.0, 1.0, 1.0, 2.0):
            heartbeat.pinged(now)
        self.assertEqual([heartbeat.ponged(1.0, now=1.0) for _ in range(4)], [True, True, True, False])
        self.assertEqual([heartbeat.ponged(2.0, now=2.0) for _ in range(2)], [True, False])

    def test_overtaken(self) -> None:
        """An answer counts for all PINGs before its own; theirs come too late then."""
        heartbeat = Heartbeat(5.0, now=0.0)
        for now in (1.0, 2.0, 3.0):
            heartbeat.pinged(now)
        self.assertEqual([heartbeat.ponged(sentAt, 4.0) for sentAt in (2.0, 1.0, 2.0, 3.0)], [True, False, False, True])

    def test_late(self) -> None:
        """An answer is late after a second, and on a long path after four of the usual round trips."""
        for roundTrip, seconds in ((0.0, 1.0), (0.01, 1.0), (0.25, 1.0), (0.5, 2.0)):
            heartbeat = Heartbeat(5.0, now=0.0)
            heartbeat.pinged(5.0)
            self.assertFalse(heartbeat.late(5.0 + seconds, roundTrip))
            self.assertTrue(heartbeat.late(5.1 + seconds, roundTrip))
            heartbeat.ponged(5.0, now=5.0)
            self.assertFalse(heartbeat.late(100.0, roundTrip))

    def test_neverPinged(self) -> None:
        """A link that was asked nothing can not be blamed."""
        self.assertFalse(Heartbeat(5.0, now=0.0).dead(1e6))

    def test_usual(self) -> None:
        """A dead link is found within fifteen seconds of its death, PINGs and all."""
        self.assertLessEqual(INTERVAL + MISSES * INTERVAL, 15.0)
        self.assertLessEqual(LATE_SECONDS, INTERVAL)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.lists(st.floats(0.1, 5.0), max_size=30), st.floats(0.0, 5.0))
    def test_aliveIsNeverDead(self, gaps: list[float], roundTrip: float) -> None:
        """Whoever answers each PING within an interval is never taken for dead."""
        heartbeat, now = Heartbeat(5.0, now=0.0), 0.0
        waiting: list[float] = []
        for gap in gaps:
            now += gap
            while waiting and waiting[0] + roundTrip <= now:
                heartbeat.ponged(waiting.pop(0), now)
            self.assertFalse(heartbeat.dead(now))
            if heartbeat.due(now):
                heartbeat.pinged(now)
                waiting.append(now)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.floats(0.0, 40.0), st.floats(0.1, 1.0))
    def test_deadInTime(self, busyFor: float, step: float) -> None:
        """Whatever arrived before: three intervals after a link fell silent, and a look at the clock, it is dead."""
        heartbeat, now = Heartbeat(5.0, now=0.0), 0.0
        while now < busyFor:
            now += step
            heartbeat.heardAt = now
            if heartbeat.due(now):
                heartbeat.pinged(now)
                heartbeat.ponged(now, now)
        silentAt = now
        while now <= silentAt + 15.0 + 2 * step:
            now += step
            if heartbeat.due(now):
                heartbeat.pinged(now)
        self.assertTrue(heartbeat.dead(now))
