"""
Tests for L{udptunnel.core.window}.

Most of them watch a L{Window} on a L{Path}: a simulated way of some rate and
round trip. The sender does what L{udptunnel.core.link.Link} does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from itertools import product
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import Path
from tests.examples import EXAMPLES
from udptunnel.core.window import ASK_SECONDS, START, Window

DELAY = 0.1
DATAGRAM = 1400
PING_BYTES = 18
INTERVAL = 5.0

RATES = (1, 10, 100)
"""Mbit/s."""

ROUND_TRIPS = (0.02, 0.1, 0.3)
"""Seconds."""


class Sender:
    """
    One end that fills a window, and the other that answers its PINGs.

    @ivar busy: whether there is always more to send.
    @ivar received: when bytes arrived, and how many had by then.
    """

    def __init__(self, megabits: float, roundTrip: float, delay: float = DELAY, datagram: int = 0) -> None:
        """
        @param datagram: what is sent as one; if not given, as much as keeps the test fast.
        """
        self.path = Path(megabits, roundTrip)
        self.window = Window(delay, 0.0)
        self.datagram = datagram or (DATAGRAM if megabits <= 20 else 4 * DATAGRAM)
        self.busy = False
        self.received: list[tuple[float, int]] = [(0.0, 0)]
        self._pingedAt = 0.0
        self._ping()
        self._tick()

    def _tick(self) -> None:
        if self.path.now - self._pingedAt >= INTERVAL:
            self._ping()
        self.path.at(self.path.now + 1.0, self._tick)

    def _ping(self) -> None:
        sentAt = self._pingedAt = self.path.now
        self._write(PING_BYTES)
        self.window.pinged(sentAt)
        # It travels behind what was sent before, and so does its answer.
        self.path.send(0, lambda: self._pingArrived(sentAt))

    def _pingArrived(self, sentAt: float) -> None:
        received = self.received[-1][1]
        self.path.answer(lambda: self._pongArrived(sentAt, received))

    def _pongArrived(self, sentAt: float, received: int) -> None:
        self.window.arrived(sentAt, received, self.path.now)
        self.pump()

    def _write(self, length: int) -> None:
        self.window.wrote(length)
        self.path.send(length, lambda: self.received.append((self.path.now, self.received[-1][1] + length)))

    def pump(self) -> None:
        """Send as much as the window lets."""
        while self.busy and self.window.room > 0:
            self._writePortion(self.window.portion)
        if self.busy:
            self.window.crowd(self.path.now)
            if self.window.wantsPing(self.path.now):
                self._ping()

    def _writePortion(self, portion: float) -> None:
        while portion > 0:
            self._write(self.datagram)
            portion -= self.datagram
        if self.window.wantsPing(self.path.now):
            self._ping()

    def fill(self, seconds: float) -> None:
        """Send as much as possible for some time."""
        self.busy = True
        self.pump()
        self.path.run(self.path.now + seconds)
        self.busy = False

    def trickle(self, seconds: float, part: float) -> None:
        """Send a part of what the path takes for some time."""
        for _ in range(int(seconds * 50)):
            self._write(int(self.path.rate * part / 50))
            if self.window.wantsPing(self.path.now):
                self._ping()
            self.path.run(self.path.now + 0.02)

    def rest(self, seconds: float) -> None:
        """Send nothing for some time."""
        self.path.run(self.path.now + seconds)

    def used(self, begin: float, end: float) -> float:
        """The part of the path's rate that was used between two times."""
        return (self._receivedUntil(end) - self._receivedUntil(begin)) / (end - begin) / self.path.rate

    def _receivedUntil(self, time: float) -> int:
        return self.received[bisect_right(self.received, (time, inf)) - 1][1]


def paths() -> Iterator[tuple[float, float]]:
    """All rates with all round trips."""
    return product(RATES, ROUND_TRIPS)


@cache
def filled(megabits: float, roundTrip: float) -> Sender:
    """A path after 28 seconds of constant load, in which the window looks for the empty path twice."""
    sender = Sender(megabits, roundTrip)
    sender.fill(28)
    return sender


class BoundsTests(SynchronousTestCase):
    """What L{Window} says of single events."""

    def test_start(self) -> None:
        """Before anything was measured, some bytes may go, and then no more."""
        window = Window(DELAY, now=0.0)
        self.assertEqual(window.room, START)
        window.wrote(START)
        self.assertEqual((window.room, window.flying), (0, START))

    def test_noLimit(self) -> None:
        """A delay of 0 means no limit, and no PINGs for the window's sake; the round trip is measured all the same."""
        window = Window(0.0, now=0.0)
        for _ in range(100):
            window.wrote(10**9)
            self.assertEqual((window.room, window.portion), (inf, inf))
            self.assertFalse(window.wantsPing(0.0))
        window.crowd(0.0)
        window.arrived(1.0, 10**9, now=1.25)
        self.assertEqual((window.room, window.portion, window.roundTrip), (inf, inf, 0.25))

    def test_pings(self) -> None:
        """A PING follows each eighth of the window, which is also what goes in one write."""
        window = Window(DELAY, now=0.0)
        self.assertFalse(window.wantsPing(0.0))
        self.assertEqual(window.portion, START / 8)
        window.wrote(START // 8)
        self.assertTrue(window.wantsPing(0.0))
        window.pinged(0.0)
        self.assertFalse(window.wantsPing(0.0))

    def test_pingsSoon(self) -> None:
        """A PING follows anything after a quarter of a second, and nothing."""
        window = Window(DELAY, now=0.0)
        self.assertFalse(window.wantsPing(9.0))
        window.wrote(100)
        self.assertFalse(window.wantsPing(ASK_SECONDS - 0.01))
        self.assertTrue(window.wantsPing(ASK_SECONDS))
        window.pinged(ASK_SECONDS)
        self.assertFalse(window.wantsPing(9.0))

    def test_pingsWithoutRoom(self) -> None:
        """If there is no room and no PING on the way, because the window has shrunk, one must go."""
        window = Window(DELAY, now=0.0)
        window.wrote(START)
        window.pinged(0.0)
        window.wrote(START // 8 - 1)
        self.assertFalse(window.wantsPing(0.0))
        for received, now in ((0, 0.01), (START, 10.0)):
            window.crowd(0.0)
            window.arrived(0.0, received, now)
        self.assertLess(window.room, 0)
        self.assertTrue(window.wantsPing(0.0))

    def test_flying(self) -> None:
        """What the other end has received is no longer in flight."""
        window = Window(DELAY, now=0.0)
        window.wrote(5000)
        window.arrived(0.0, 3000, now=0.1)
        self.assertEqual(window.flying, 2000)

    def test_roundTrip(self) -> None:
        """The last and the smallest round trip are known."""
        window = Window(DELAY, now=0.0)
        for sentAt, now in ((1.0, 1.3), (2.0, 2.25), (3.0, 3.5)):
            window.arrived(sentAt, 0, now)
        self.assertEqual((window.roundTrip, window.smallest), (0.5, 0.25))

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 10**6), st.integers(0, 2**64 - 1), st.floats(-1e6, 1e6), st.floats(0, 100), st.booleans()
            ),
            max_size=20,
        ),
        st.sampled_from([0.0, 0.001, DELAY]),
    )
    def test_nonsense(self, events: list[tuple[int, int, float, float, bool]], delay: float) -> None:
        """Whatever the other end claims, no more is acknowledged than was sent, and the window stays open a little."""
        window, now = Window(delay, now=0.0), 0.0
        for length, received, sentAt, gap, crowded in events:
            now += gap
            window.wrote(length)
            if crowded:
                window.crowd(now)
            window.arrived(min(sentAt, now), received, now)
            self.assertTrue(0 <= window.flying <= window.sent)
            self.assertGreaterEqual(window.size, 1)
            self.assertGreater(window.roundTrip, 0)


class SteadyTests(SynchronousTestCase):
    """A path that is always wanted."""

    def test_full(self) -> None:
        """After start-up nine tenths of the rate are used, and all of it between two looks at the empty path."""
        for megabits, roundTrip in paths():
            sender = filled(megabits, roundTrip)
            self.assertGreater(sender.used(4, 28), 0.9, (megabits, roundTrip))
            self.assertGreater(sender.used(6, 9), 0.97, (megabits, roundTrip))
            for second in range(4, 27):
                self.assertGreater(sender.used(second, second + 1), 0.7, (megabits, roundTrip, second))

    def test_short(self) -> None:
        """From three seconds on, nothing waits longer than the delay and the empty path's round trip."""
        for megabits, roundTrip in paths():
            sender = filled(megabits, roundTrip)
            aDatagram = sender.datagram / sender.path.rate
            self.assertLess(sender.path.longestWait(3, 28), DELAY + roundTrip + aDatagram, (megabits, roundTrip))
            self.assertLess(sender.path.longestWait(6, 9), 1.2 * DELAY + aDatagram, (megabits, roundTrip))

    def test_start(self) -> None:
        """At first no more waits than was sent before anything was known, or than twice what the path holds."""
        for megabits, roundTrip in paths():
            sender = filled(megabits, roundTrip)
            most = max(START * 1.05 / sender.path.rate, DELAY + roundTrip)
            self.assertLess(sender.path.longestWait(0, 3), most, (megabits, roundTrip))

    def test_bursts(self) -> None:
        """With bursts instead of datagrams, nothing waits longer but for the burst itself."""
        for megabits, roundTrip in paths():
            sender = Sender(megabits, roundTrip, datagram=16384)
            sender.fill(28)
            burst = 16384 / sender.path.rate
            self.assertLess(sender.path.longestWait(3, 28), DELAY + roundTrip + 2 * burst, (megabits, roundTrip))
            self.assertGreater(sender.used(4, 28), 0.85, (megabits, roundTrip))

    def test_smallDelay(self) -> None:
        """A smaller delay means shorter waits, but for a third of the round trip, without which the rate falls."""
        for megabits, roundTrip in product((10, 100), ROUND_TRIPS):
            sender = Sender(megabits, roundTrip, delay=0.01)
            sender.fill(9)
            most = 1.2 * max(0.01, roundTrip / 3) + 2 * sender.datagram / sender.path.rate
            self.assertLess(sender.path.longestWait(6, 9), most, (megabits, roundTrip))
            self.assertGreater(sender.used(4, 9), 0.9, (megabits, roundTrip))

    def test_satellite(self) -> None:
        """A very long path is filled, too."""
        sender = Sender(20, 0.65)
        sender.fill(28)
        self.assertGreater(sender.used(8, 28), 0.85)
        self.assertLess(sender.path.longestWait(8, 28), 0.65)

    def test_slow(self) -> None:
        """Even on a very slow path, no more than a second's bytes wait."""
        sender = Sender(0.064, 0.3, datagram=160)
        sender.fill(40)
        self.assertLess(sender.path.longestWait(20, 40), 1.0)
        self.assertGreater(sender.used(20, 40), 0.9)


class ChangeTests(SynchronousTestCase):
    """A path that changes, or is not always wanted."""

    def changed(self, megabits: float, roundTrip: float, factor: float) -> Sender:
        """A path whose rate changes after eight seconds, and that is watched for eight more."""
        sender = Sender(megabits, roundTrip)
        sender.fill(8)
        sender.path.rate *= factor
        sender.fill(8)
        return sender

    def test_halved(self) -> None:
        """When the rate halves, waits are as short as before within three seconds."""
        for megabits, roundTrip in paths():
            sender = self.changed(megabits, roundTrip, 0.5)
            aDatagram = sender.datagram / sender.path.rate
            wait = sender.path.longestWait(11, 16)
            self.assertLess(wait, DELAY + roundTrip + 2 * aDatagram, (megabits, roundTrip))
            self.assertGreater(sender.used(9, 16), 0.85, (megabits, roundTrip))

    def test_doubled(self) -> None:
        """When the rate doubles, nine tenths of it are used within three seconds."""
        for megabits, roundTrip in paths():
            sender = self.changed(megabits, roundTrip, 2)
            self.assertGreater(sender.used(11, 16), 0.9, (megabits, roundTrip))

    def test_fallen(self) -> None:
        """When a tenth is left of the rate, what is on the path leaves it, and no more comes after it."""
        for megabits, roundTrip in product((10, 100), (0.02, 0.1)):
            sender = self.changed(megabits, roundTrip, 0.1)
            wait = sender.path.longestWait(11, 16)
            self.assertLess(wait, DELAY + roundTrip + 2 * sender.datagram / sender.path.rate, (megabits, roundTrip))

    def test_idle(self) -> None:
        """A minute of silence does no harm: the path is used again at once, and nothing waits longer than before."""
        for megabits, roundTrip in paths():
            sender = Sender(megabits, roundTrip)
            sender.fill(9)
            sender.rest(60)
            sender.fill(6)
            aDatagram = sender.datagram / sender.path.rate
            self.assertGreater(sender.used(70, 73), 0.9, (megabits, roundTrip))
            self.assertLess(sender.path.longestWait(69, 75), DELAY + roundTrip + 2 * aDatagram, (megabits, roundTrip))

    def test_idleFast(self) -> None:
        """After a silence a fast path is used within some round trips: what was before says nothing of its rate."""
        for rest in (6, 60):
            sender = Sender(1000, 0.001, datagram=16384)
            sender.rest(rest)
            sender.fill(0.05)
            self.assertGreater(sender.used(rest + 0.01, rest + 0.05), 0.9, rest)

    def test_idleFirst(self) -> None:
        """A link that was silent from the beginning starts no slower."""
        for megabits, roundTrip in paths():
            sender = Sender(megabits, roundTrip)
            sender.rest(60)
            sender.fill(9)
            self.assertGreater(sender.used(64, 69), 0.9, (megabits, roundTrip))

    def test_trickle(self) -> None:
        """Who needs less than the path gives does not lose the rest of it."""
        for megabits, roundTrip in product((10, 100), ROUND_TRIPS):
            sender = Sender(megabits, roundTrip)
            sender.fill(8)
            before = sender.window.size
            sender.trickle(20, part=0.1)
            self.assertGreaterEqual(sender.window.size, 0.7 * before, (megabits, roundTrip))
            sender.fill(4)
            self.assertGreater(sender.used(29, 32), 0.85, (megabits, roundTrip))

    def test_onAndOff(self) -> None:
        """Short loads with pauses between them use the path while they last."""
        for megabits, roundTrip in paths():
            sender = Sender(megabits, roundTrip)
            sender.fill(6)
            for _ in range(10):
                begin = sender.path.now
                sender.fill(2)
                sender.rest(1.5)
                used = sender.used(begin + roundTrip, begin + 2 + roundTrip)
                self.assertGreater(used, 0.6, (megabits, roundTrip, begin))

    def test_longerPath(self) -> None:
        """A path that has become longer is known as such after some ten seconds, and used again."""
        sender = Sender(10, 0.02)
        sender.fill(8)
        sender.path.roundTrip = 0.3
        sender.fill(30)
        self.assertGreater(sender.window.smallest, 0.29)
        self.assertGreater(sender.used(28, 36), 0.9)

    def test_shorterPath(self) -> None:
        """A path that has become shorter is known as such at once."""
        sender = Sender(10, 0.3)
        sender.fill(8)
        sender.path.roundTrip = 0.02
        sender.fill(5)
        self.assertLess(sender.window.smallest, 0.15)
        self.assertLess(sender.path.longestWait(10, 13), 2.5 * DELAY)
