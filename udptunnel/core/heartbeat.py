"""
Heartbeats: is there still somebody at the other end of a link?

A PING is sent when none was for a while, and each is answered at once. While
bursts arrive there is less need to ask, so it is done three times less often.
Only an answer counts as a sign of life all the same, for a path may be dead
in one direction only. A link is dead three intervals after it fell silent at
the latest: one until a PING is due, two without an answer. Whose answers come
slowly is not dead: on a path that loses much, each waits for what was sent
before it.
"""

from __future__ import annotations

from collections import deque
from math import inf

INTERVAL = 5.0
"""Seconds between PINGs while nothing else arrives."""

BUSY = 3
"""How many intervals are between PINGs while bursts arrive."""

MISSES = 2
"""A link is dead after so many intervals without an answer."""

LATE_SECONDS, LATE_TRIPS = 1.0, 4
"""An answer is late after one second, and after four of the usual round trips."""


class Heartbeat:
    """
    Says when to send a PING, when to go another way, and when to give up.

    @ivar heardAt: when a burst arrived last.
    """

    def __init__(self, interval: float, now: float) -> None:
        self.interval = interval
        self.heardAt = -inf
        self._pingedAt = self._answeredAt = now
        self._unanswered: deque[float] = deque()

    def due(self, now: float) -> bool:
        """Whether it is time for a PING."""
        busy = now - self.heardAt < self.interval
        return now - self._pingedAt >= (self.interval * BUSY if busy else self.interval)

    def pinged(self, now: float) -> None:
        """A PING was sent, for whatever reason."""
        self._pingedAt = now
        self._unanswered.append(now)

    def ponged(self, sentAt: float, now: float) -> bool:
        """
        The PING of C{sentAt} was answered, and with it all before it.

        @return: whether there was one to answer. Who says PONG unasked is not to be listened to.
        """
        unanswered = self._unanswered
        if sentAt not in unanswered:
            return False
        while unanswered[0] < sentAt:
            unanswered.popleft()
        # Several may be of one moment, and each has an answer of its own.
        unanswered.popleft()
        self._answeredAt = now
        return True

    def late(self, now: float, roundTrip: float) -> bool:
        """Whether the other end takes long to answer, so that another link is better."""
        return self._waited(now) > max(LATE_SECONDS, LATE_TRIPS * roundTrip)

    def dead(self, now: float) -> bool:
        """Whether the other end has been silent for too long."""
        return self._waited(now) > MISSES * self.interval

    def _waited(self, now: float) -> float:
        return now - max(self._unanswered[0], self._answeredAt) if self._unanswered else 0.0
