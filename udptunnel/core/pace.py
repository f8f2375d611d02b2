"""
Pace: whether a port is so busy that it had better rest between two reads.

Waking up costs far more than one more datagram does. A port that is busy
enough for nobody to notice wakes up rarely and takes a lot, as network cards
do with interrupts. It must not when its senders wait for answers: they would
be slowed down by it, less would come, and that is how they are told from
others.
"""

from __future__ import annotations

BUSY_RATE = 20_000
"""Datagrams a second from which on a port is busy."""

SPAN = 0.02
"""Seconds over which that is measured."""

KEPT_SHARE = 0.6
"""How much of a port's rate must be left when it rests. If less is left, its senders wait for answers."""

SLOW_SPANS = 3
"""Spans in a row of which that must hold: in a single one a busy machine had other things to do."""

RESTLESS_SECONDS = 1.0
"""How long a port does not rest after that was found out."""


class Pace:
    """
    Counts what one port takes.

    @ivar busy: whether it rests when it has taken what is there.
    """

    __slots__ = ("_rate", "_restlessUntil", "_since", "_slow", "_taken", "busy")

    def __init__(self) -> None:
        self.busy = False
        self._rate = self._restlessUntil = self._since = 0.0
        self._slow = self._taken = 0

    def took(self, datagrams: int) -> None:
        """So many were read."""
        self._taken += datagrams

    def wantsRest(self, now: float) -> bool:
        """Whether to rest, now that nothing is left to read."""
        if now - self._since >= SPAN:
            self._judge(self._taken / (now - self._since), now)
            self._since, self._taken = now, 0
        return self.busy

    def _judge(self, rate: float, now: float) -> None:
        """Say whether the port is busy, now that C{rate} datagrams a second came lately."""
        if not self.busy or rate >= KEPT_SHARE * self._rate:
            self._slow = 0
            self.busy, self._rate = rate > BUSY_RATE and now >= self._restlessUntil, rate
            return
        self._slow += 1
        if self._slow == SLOW_SPANS:
            self.busy, self._restlessUntil = False, now + RESTLESS_SECONDS
