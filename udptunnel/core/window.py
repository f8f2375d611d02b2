"""
How much may be on its way on a link: the queue beyond our own.

A TCP link takes whatever it is given, and so do the proxies behind it: the
bytes wait in socket buffers, where nothing is fair and nothing ever gets too
old. So a link never has more in flight than its path delivers within a delay
target: the round trip of the empty path plus C{delay} seconds. The other end
says in its PONGs how many bytes have arrived; from that follow the path's
rate and round trip, in the manner of BBR (draft-ietf-ccwg-bbr): the rate is
measured over a round trip, the empty path's round trip is the smallest of
late, and once in ten seconds of crowding the window shrinks for a moment,
so that an empty path can be seen again.
"""

from __future__ import annotations

from collections import deque

START = 65536
"""Bytes in flight before anything was measured: half a second at 1 Mbit/s."""

LEAST = 16384
"""However slow the path is, one piece of a queue may go."""

SPAN = 0.1
"""Seconds over which the rate is measured at least."""

EPOCH = 10.0
"""Seconds after which a smallest round trip is doubted."""


class Window:
    """Counts the bytes in flight on one link and says when they are enough."""

    def __init__(self, delay: float, now: float) -> None:
        """
        @param delay: seconds that bytes may wait somewhere on the path, beyond
            the path's own round trip. 0 means no limit.
        """
        self.delay = delay
        self.size = float(START)
        self.sent = self.acknowledged = self.pinged = 0
        self.roundTrip = self.smallest = 0.0
        self._rate = 0.0
        self._crowded = False
        self._seenAt = now
        self._probeUntil = 0.0
        self._arrivals: deque[tuple[float, int]] = deque([(now, 0)])

    @property
    def flying(self) -> int:
        """Bytes that were sent and are not known to have arrived."""
        return self.sent - self.acknowledged

    @property
    def room(self) -> float:
        """How many bytes may be sent now; none if not above 0."""
        return self.size - self.flying if self.delay else float("inf")

    def wrote(self, length: int) -> None:
        """C{length} bytes went to the link."""
        self.sent += length

    def wantsPing(self) -> bool:
        """
        Whether a PING should follow what was sent: one for each eighth of the window.

        So a full window always has one of them on the way.
        """
        return bool(self.delay) and self.sent - self.pinged >= self.size / 8

    def crowd(self) -> None:
        """More is to be sent than there is room for."""
        self._crowded = True

    def arrived(self, sentAt: float, received: int, now: float) -> None:
        """
        A PONG came.

        @param sentAt: when its PING was sent.
        @param received: how many bytes of ours had arrived by then at the other end.
        """
        self.acknowledged = min(max(received, self.acknowledged), self.sent)
        self.roundTrip = max(now - sentAt, 1e-6)
        self._measureRoundTrip(now)
        self._measureRate(sentAt, now)
        if self.delay:
            self._resize(now)

    def _measureRoundTrip(self, now: float) -> None:
        if not self.smallest or self.roundTrip <= self.smallest:
            self.smallest, self._seenAt = self.roundTrip, now
        elif now - self._seenAt > EPOCH:
            self._doubt(now)

    def _doubt(self, now: float) -> None:
        """The smallest round trip is old: look again, on a path that we let run empty if we crowd it."""
        if self._crowded and not self._probeUntil:
            self._probeUntil = now + 2 * (self.smallest + self.delay)
        elif now >= self._probeUntil:
            self.smallest, self._seenAt, self._probeUntil = self.roundTrip, now, 0.0

    def _measureRate(self, sentAt: float, now: float) -> None:
        arrivals = self._arrivals
        if len(arrivals) == 1 and not self._rate:
            arrivals[0] = (min(sentAt, now - 1e-6), arrivals[0][1])
        arrivals.append((now, self.acknowledged))
        while len(arrivals) > 2 and now - arrivals[1][0] >= max(SPAN, self.roundTrip):
            arrivals.popleft()
        (begin, before), (end, after) = arrivals[0], arrivals[-1]
        rate = (after - before) / max(end - begin, 1e-6)
        if rate > self._rate or (self._crowded and now >= self._probeUntil):
            self._rate = rate

    def _resize(self, now: float) -> None:
        if now < self._probeUntil:
            self.size = max(LEAST, self._rate * self.smallest / 2)
        else:
            self.size = max(LEAST, self._rate * (self.smallest + self.delay))
        self._crowded = self._crowded and self.room <= 0
