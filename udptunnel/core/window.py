"""
How much may be on its way on a link: the queue beyond our own.

A TCP link takes whatever it is given, and so do the proxies behind it: the
bytes wait in socket buffers, where nothing is fair and nothing ever gets too
old. So a link never has more in flight than its path delivers within a delay
target: the round trip of the empty path plus C{delay} seconds. The other end
says in its PONGs how many bytes have arrived; from that follow the path's
rate and round trip, in the manner of BBR (draft-ietf-ccwg-bbr):

  - The rate is what arrived in the last round trip. A lower one counts only if
    there was more to send all the while: otherwise it is ours, not the path's.
  - The empty path's round trip is the smallest of late. After ten seconds
    without a smaller one the window shrinks for two round trips, if we crowd
    the path, so that an empty path can be seen again.
  - Until a queue is seen for the first time, the window doubles with each
    round trip: with C{delay} alone it would grow slowly on a long path.
"""

from __future__ import annotations

from collections import deque
from math import inf

START = 65536
"""Bytes in flight before anything was measured: half a second at 1 Mbit/s."""

LEAST = 4096
"""However slow the path is, some datagrams may be on it: half a second at 64 kbit/s."""

SPAN = 0.1
"""Seconds over which the rate is measured at least."""

EPOCH = 10.0
"""Seconds after which a smallest round trip is doubted."""

PROBE = 0.75
"""How much of what fills the path without a queue is on it while we look for the empty path: less would waste more."""

SPARE = 1 / 3
"""
On a long path, bytes may wait for this part of its round trip even if
C{delay} is less: with nothing to spare, each lull would lower the rate that
is measured, hence the window, hence the rate.
"""


ASK_SECONDS = 0.25
"""While bytes are sent a PING follows them after this time at the latest, so that a path that stalls is noticed."""

LEAST_BACKLOG, MOST_BACKLOG = 1 << 16, 1 << 20
"""Bytes that may wait in the kernel: with fewer, a lossy path would not be used; more would be no queue of ours."""


class Window:
    """Counts the bytes in flight on one link and says when they are enough."""

    def __init__(self, delay: float, now: float) -> None:
        """
        @param delay: seconds that bytes may wait somewhere on the path, beyond
            the path's own round trip. 0 means no limit.
        """
        self.delay = delay
        self.size = self._whole = float(START)
        self.sent = self.acknowledged = self._pinged = 0
        self._pingedAt = now
        self.roundTrip = self.smallest = 0.0
        self._rate = 0.0
        self._growing = True
        self._crowded = False
        self._crowdedSince = inf
        self._crowdedAt = -inf
        self._seenAt = now
        self._probeFrom: float | None = None
        self._found = inf
        self._arrivals: deque[tuple[float, float, int]] = deque()

    @property
    def flying(self) -> int:
        """Bytes that were sent and are not known to have arrived."""
        return self.sent - self.acknowledged

    @property
    def rate(self) -> float:
        """Bytes a second that the path was seen to carry; 0 if nothing was measured."""
        return self._rate

    @property
    def room(self) -> float:
        """How many bytes may be sent now; none if not above 0."""
        return self.size - self.flying if self.delay else inf

    @property
    def reserve(self) -> float:
        """
        How many bytes of sparse flows may be sent even if there is no room: an
        eighth of the window beyond it, and of the whole window even while it
        is shrunk to look for the empty path.
        """
        return self._whole * 9 / 8 - self.flying if self.delay else inf

    @property
    def portion(self) -> float:
        """
        How many bytes may go in one write: an eighth of the window.

        A PING follows each, and the answers make room for one after the other.
        Were the whole window one write, it would be answered all at once, and
        the path would run empty meanwhile.
        """
        return min(self.room, self.size / 8) if self.delay else inf

    @property
    def backlog(self) -> int:
        """
        How many bytes may wait in the kernel, not sent yet: a sixteenth of the window.

        Its congestion control may let nearly nothing pass for a while: BBR does
        so for 0.2 s every ten seconds. What waits there then holds up the sparse
        flows; what waits in our own queue does not.
        """
        return int(min(max(LEAST_BACKLOG, self._whole / 16), MOST_BACKLOG)) if self.delay else MOST_BACKLOG

    def wrote(self, length: int) -> None:
        """C{length} bytes went to the link."""
        self.sent += length

    def pinged(self, now: float) -> None:
        """A PING was the last that went to the link."""
        self._pinged, self._pingedAt = self.sent, now

    def wantsPing(self, now: float) -> bool:
        """
        Whether a PING should follow what was sent: one for each eighth of the window, and soon enough.

        So there is one on the way whenever there is no room, for only its
        answer makes room again; unless the window has shrunk since it was sent.
        """
        unasked = self.sent - self._pinged
        return bool(self.delay) and (unasked >= self.size / 8 or (unasked > 0 and now - self._pingedAt >= ASK_SECONDS))

    def crowd(self, now: float) -> None:
        """More is to be sent than the path takes."""
        self._crowded = True
        self._crowdedAt = now
        self._crowdedSince = min(self._crowdedSince, now)

    def arrived(self, sentAt: float, received: int, now: float) -> None:
        """
        A PONG came.

        @param sentAt: when its PING was sent.
        @param received: how many bytes of ours had arrived by then at the other end.
        """
        self.acknowledged = min(max(received, self.acknowledged), self.sent)
        self.roundTrip = max(now - sentAt, 1e-6)
        if not self._crowded:
            self._crowdedSince = inf
        self._measureRoundTrip(sentAt, now)
        filled = self._measureRate(sentAt, now)
        if self.delay:
            self._resize(filled)
        self._crowded = False

    def _measureRoundTrip(self, sentAt: float, now: float) -> None:
        doubted = now - self._seenAt > EPOCH
        if self._probeFrom is not None and sentAt >= self._probeFrom:
            self._probed(self._probeFrom, now)
        elif not self.smallest or self.roundTrip <= self.smallest or (doubted and self._ranEmpty(sentAt)):
            self.smallest, self._seenAt = self.roundTrip, now
        elif doubted and self._probeFrom is None:
            # What is on the path now has left it after one round trip.
            self._probeFrom = now + self.roundTrip
        if self.roundTrip > self.smallest + max(self.smallest, self.delay) / 2:
            self._growing = False

    def _ranEmpty(self, sentAt: float) -> bool:
        """Whether a PING of that time was sent long enough after we last crowded the path."""
        return sentAt - self._crowdedAt > self.roundTrip

    def _probed(self, begin: float, now: float) -> None:
        """
        An answer came while the window is shrunk. The smallest round trip of
        the probe counts: the first one may still have met a queue.
        """
        self._found = min(self._found, self.roundTrip)
        if self._found <= self.smallest or now - begin >= self.smallest + self.delay:
            self.smallest, self._seenAt = self._found, now
            self._probeFrom, self._found, self._crowdedSince = None, inf, inf

    def _measureRate(self, sentAt: float, now: float) -> bool:
        """
        How fast bytes arrived lately.

        @return: whether we kept the path filled all the while.
        """
        arrivals = self._arrivals
        if not arrivals:
            arrivals.append((sentAt, now - self.roundTrip, 0))
        elif now - arrivals[-1][1] > max(SPAN, 2 * self.roundTrip):
            # The link was idle. How long it took to send what has arrived since, nobody knows.
            arrivals.clear()
        arrivals.append((sentAt, now, self.acknowledged))
        while len(arrivals) > 2 and now - arrivals[1][1] >= max(SPAN, self.roundTrip):
            arrivals.popleft()
        pingedAt, begin, before = arrivals[0]
        # Answers may come together: over less than a round trip they show the least that the rate can be.
        rate = (self.acknowledged - before) / max(now - begin, self.roundTrip)
        filled = self._probeFrom is None and self._crowdedSince <= pingedAt and now - begin >= self.roundTrip
        if filled or rate > self._rate:
            self._rate = rate
        return filled

    def _resize(self, filled: bool) -> None:
        """A window that was not filled does not shrink."""
        if self._probeFrom is not None:
            self.size = max(1.0, self._rate * self.smallest * PROBE)
            return
        spare = self.smallest if self._growing else self.smallest * SPARE
        wanted = max(LEAST, self._rate * (self.smallest + max(self.delay, spare)))
        self.size = self._whole = wanted if filled else max(wanted, self.size)
