"""
Heartbeats: is there still somebody at the other end of a link?

A PING is sent when none was for a while, and each is answered at once. A link
is dead when a PING has had no answer for three intervals: what else arrives
does not count, for a path may be dead in one direction only.
"""

from __future__ import annotations

INTERVAL = 5.0
"""Seconds between PINGs."""

MISSES = 3
"""A link is dead after so many intervals without an answer."""


class Heartbeat:
    """Says when to send a PING, and when to give up."""

    def __init__(self, interval: float, now: float) -> None:
        self.interval = interval
        self._pingedAt = now
        self._waitingSince: float | None = None

    def due(self, now: float) -> bool:
        """Whether it is time for a PING."""
        return now - self._pingedAt >= self.interval

    def pinged(self, now: float) -> None:
        """A PING was sent, for whatever reason."""
        self._pingedAt = now
        if self._waitingSince is None:
            self._waitingSince = now

    def ponged(self, sentAt: float) -> None:
        """The PING of C{sentAt} was answered, and with it all before it."""
        self._waitingSince = None if sentAt >= self._pingedAt else sentAt

    def dead(self, now: float) -> bool:
        """Whether the other end has been silent for too long."""
        return self._waitingSince is not None and now - self._waitingSince > MISSES * self.interval
