"""
Vigil: was this process stopped for a while?

A process that is stopped (SIGSTOP, a debugger, a frozen container) notices
nothing of it; but the clock goes on, and the kernel goes on taking datagrams
for it, which nobody wants any more when it wakes. So whoever reads asks first
whether the last tick is longer ago than any load could explain.
"""

from __future__ import annotations

from math import inf

STOPPED_SECONDS = 2.0
"""
There is a tick at least once a second, and it may be late by a second on a busy
machine. To be wrong costs no more than what comes within one round trip.
"""


class Vigil:
    """Looks at the clock, from the first tick on: whoever calls that must go on with it."""

    __slots__ = ("_seenAt",)

    def __init__(self) -> None:
        self._seenAt = inf

    def tick(self, now: float) -> bool:
        """A second or so has passed. Returns whether it was much longer."""
        stopped = self.stopped(now)
        self._seenAt = now
        return stopped

    def stopped(self, now: float) -> bool:
        """Whether the process was stopped since the last tick; said only once."""
        if now - self._seenAt <= STOPPED_SECONDS:
            return False
        self._seenAt = now
        return True
